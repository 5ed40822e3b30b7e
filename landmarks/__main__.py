from landmarks.serving.cli import main

raise SystemExit(main())
