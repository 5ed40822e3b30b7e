"""Using released models: the command line, a web page, ONNX files, and answers in the format of the challenge."""
