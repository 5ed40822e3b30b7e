"""Are photos of unknown landmarks recognised as unknown? Measured on landmarks that the filter left out.

    .venv/bin/python -m studies.unknown        after `make reproduce`, with the same params.yaml

Takes 200 pictures of landmarks in `data.source` that are no classes, equally many of each, and the test pictures of the
classes. For every model in models/released/, prints the share of each called unknown, and how well confidence ranks
known above unknown pictures (area under the ROC curve; 50 is chance). In percent.
"""

from collections.abc import Iterable

from landmarks import artifacts, classes, images, params, sources, stage
from landmarks.serving.recognizer import BATCH, Answer, Recognizer

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

PICTURES = 200


def left_out(index: pd.DataFrame, kept: Iterable[str]) -> pd.DataFrame:
    """About `PICTURES` rows of the index, the same number of each landmark that is not kept (or all that it has)."""
    others = index[~index["landmark_id"].isin(kept)].sort_values(["landmark_id", "id"])
    if others.empty:
        raise stage.UserError("data.source: has no landmark that the filter left out; lower filter.top_k")
    each = -(-PICTURES // others["landmark_id"].nunique())
    return others.groupby("landmark_id").head(each).sort_values("id")


def answers(model: Recognizer, pictures: list[bytes]) -> list[Answer]:
    views = []
    for data in pictures:
        try:
            views.append(model.view(data))
        except images.Unfit:
            continue
    return [answer for start in range(0, len(views), BATCH) for answer in model.answer(views[start : start + BATCH])]


def main() -> str:
    p = params.load()
    with sources.open_source(
        p.data, p.download, seed=p.seed, workers=p.compute.workers, scratch=artifacts.DOWNLOADS
    ) as source:
        index, _ = sources.restrict(source.index(), p.data.only)
        ranking = classes.rank(index, skip_top=p.filter.skip_top, top_k=p.filter.top_k, min_images=p.filter.min_images)
        wanted = left_out(index, ranking.loc[ranking["kept"], "landmark_id"])
        failures = source.fetch(wanted)
        wanted = wanted[~wanted["id"].isin(failures)]
        unknown = [picture.picture for picture in source.pictures(wanted)]
    split = pd.read_parquet(artifacts.SPLIT)
    test = split.loc[split["split"] == "test", "id"]
    known = [picture.picture for picture in images.read_pictures(artifacts.FILTERED, test)]
    rows = {}
    for folder in sorted(path.parent for path in artifacts.RELEASED.glob("*/release.json")):
        model = Recognizer(folder, p.compute.device)
        both = [answers(model, pictures) for pictures in (known, unknown)]
        called = [100 * np.mean([not model.known(answer) for answer in group]) for group in both]
        confidence = [answer.scores.max() for group in both for answer in group]
        truth = [1] * len(both[0]) + [0] * len(both[1])
        rows[folder.name] = [*called, 100 * roc_auc_score(truth, confidence)]
    columns = ["test pictures called unknown", "others called unknown", "area under the ROC curve"]
    print(pd.DataFrame.from_dict(rows, "index", columns=columns).to_markdown(floatfmt=".2f"))
    return f"{len(known)} test pictures, {len(unknown)} pictures of {wanted['landmark_id'].nunique()} other landmarks"


if __name__ == "__main__":
    stage.run(main)
