"""report: one page about data, results, mistakes and settings, to read and to pass on."""

import json
from pathlib import Path

from landmarks import artifacts, html_report, inspection, params, report, stage

import pandas as pd

SHOWN, FIRST = 24, 6  # pairs of pictures in a section; those that are visible without a click
WORST = 10  # classes that are visible without a click
LISTED = 50  # classes that are left out
COLUMNS = 8  # the page shows the first columns of the results
DRAWINGS = (
    *(artifacts.PLOTS / f"{name}.png" for name in ("class_histogram", "confusion", "training")),
    *(artifacts.INSPECTION / f"{name}.png" for name in ("embedding", "learning_curve")),
)


def settings(p: params.Params) -> dict[str, str]:
    """What decides the results: params.yaml without download, package and the rest of compute."""
    blocks = {"data": p.data.portable, "filter": p.filter, "split": p.split, "augment": p.augment}
    blocks |= {"backbone": p.backbone.portable, "train": p.train, "abn": p.abn, "evaluate": p.evaluate}
    values = {name: block.model_dump(mode="json") for name, block in blocks.items()}
    values["split"]["given"] = p.split.given  # a dump lacks it if it is the default
    values["train"] = {"repeats": p.train.repeats} | values["train"]  # a dump never has it
    values["ablations"] = {name: block.model_dump(mode="json") for name, block in sorted(p.ablations.items())}
    return html_report.flat({"seed": p.seed, **values, "compute": {"precision": p.compute.precision}})


def main() -> str:
    p = params.load()
    results, predictions = artifacts.read_results(), pd.read_parquet(artifacts.PREDICTIONS)
    best = report.best(predictions)
    known, classes = artifacts.read_named_classes(), artifacts.read_csv(artifacts.CLASSES)
    classes["precision"] = pd.to_numeric(classes["precision"])  # empty for a class that is never predicted
    wrong, dropped = artifacts.read_csv(artifacts.WRONG), artifacts.read_csv(artifacts.FILTERED / "dropped.csv")
    scores, pairs = (artifacts.read_csv(artifacts.INSPECTION / f"{name}.csv") for name in ("suspects", "duplicates"))
    curve = pd.read_csv(artifacts.INSPECTION / "learning_curve.csv")

    limit = inspection.suspect_score(len(known))
    suspects = scores[scores["score"] < limit]
    typical = html_report.typical(predictions.query("model == @best"), known["landmark_id"].tolist())
    tables = {
        "wrong": wrong.assign(other=wrong["predicted"].map(typical).fillna("")),
        "suspects": suspects.assign(other=suspects["suggested"].map(typical).fillna("")),
        "duplicates": pairs.assign(other=pairs["other_id"]),
    }
    shown = {name: rows.head(SHOWN) for name, rows in tables.items()}
    ids = {picture for rows in shown.values() for picture in (*rows["id"], *rows["other"])}
    pictures = html_report.thumbnails(artifacts.FILTERED, ids)
    counts = json.loads((artifacts.INSPECTION / "counts.json").read_text(encoding="utf-8"))
    left_out = artifacts.read_csv(artifacts.FILTERED / "ranking.csv").query("not kept")
    synthetic = p.data.source == "sample"
    page = html_report.render(
        title="synthetic landmarks" if synthetic else p.data.portable.root or p.data.source,
        source="Synthetic pictures: the results say nothing about photographs."
        if synthetic
        else f"Source of the pictures: {p.data.source}.",
        best=best,
        test=results[best]["test"],
        sizes={split: int(classes[split].sum()) for split in ("train", "val", "test")},
        dropped=dict(sorted(dropped["reason"].value_counts().items())),
        left_out=list(left_out[["landmark_id", "images"]].itertuples(index=False, name=None)),
        listed=LISTED,
        majority=results["majority_class"],
        comparison=html_report.comparison(results["abn"]["test"], predictions),
        columns=report.COLUMNS[:COLUMNS],
        rows=[cells[:COLUMNS] for cells in report.recognition(results)],
        repeat_columns=report.REPEAT_COLUMNS,
        repeated=report.repeats(results),
        classes=classes.sort_values(["recall", "landmark_id"]).to_dict("records"),
        names=artifacts.shown_names(known),
        worst=WORST,
        totals={"wrong": len(wrong)} | counts,
        shown={name: html_report.illustrated(rows, pictures) for name, rows in shown.items()},
        first=FIRST,
        suspect=f"{limit:.2g}",
        advice=html_report.advice(counts, curve, len(wrong)),
        figures={path.stem: html_report.data_uri(path.read_bytes(), "png") for path in DRAWINGS}
        | {"attention": html_report.jpeg(artifacts.PLOTS / "attention.png")},
        settings=settings(p),
        versions=html_report.versions(Path("requirements.txt").read_text(encoding="utf-8")),
    )
    with stage.atomic_output(artifacts.REPORT) as out:
        out.write_text(page, encoding="utf-8")
    return f"{artifacts.REPORT}, {len(page.encode()) / 1e6:.1f} MB"


if __name__ == "__main__":
    stage.run(main)
