"""augment-index: which views of each picture the network sees. No later stage changes them."""

from landmarks import artifacts, augment, params, stage

import pandas as pd


def main() -> str:
    p = params.load()
    views = augment.draw(pd.read_parquet(artifacts.SPLIT), p.augment, p.seed)
    with stage.atomic_output(artifacts.VIEWS) as out:
        views.to_parquet(out, index=False)
    return f"{len(views)} views of {views['id'].nunique()} pictures"


if __name__ == "__main__":
    stage.run(main)
