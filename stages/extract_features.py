"""extract-features: the output of the frozen trunk for every view.

Each row depends only on its picture, its view and the weights. An interrupted run continues where it stopped.
"""

import shutil

from landmarks import artifacts, determinism, features, images, networks, params, stage

import numpy as np
from safetensors.torch import load_file, save_file


def main() -> str:
    determinism.prepare_inference()
    p = params.load()
    views = artifacts.read_views()
    device, crop, precision = determinism.pick_device(p.compute.device), p.augment.crop, p.compute.precision
    weights = load_file(artifacts.BACKBONE)
    trunk, kept = networks.Trunk(weights, p.backbone).to(device), networks.trunk_weights(weights, p.backbone)
    shape = features.shape(trunk, len(views), crop)
    # The device is a setting, because other devices round differently.
    settings = {"crop": crop, "backbone": p.backbone.model_dump(), "precision": precision, "device": device.type}
    inputs = [artifacts.VIEWS, artifacts.BACKBONE, *images.shards(artifacts.FILTERED)]
    with stage.scratch("extract-features", settings, inputs) as scratch:
        unfinished = scratch / artifacts.FEATURES.name
        with unfinished.open("a+b") as file, stage.progress(len(views), "views") as bar:
            done = features.resume_npy(file, shape)  # `bar.n` stays 0 if the user's TQDM_DISABLE hides the bar
            bar.update(done)
            left = views.iloc[done:]
            if p.compute.cluster:
                batches = features.extract_on_cluster(
                    p.compute.cluster, trunk, kept, p.backbone, artifacts.FILTERED, left, crop, precision
                )
            else:
                batches = features.extract(trunk, artifacts.FILTERED, left, crop, precision, p.compute.workers)
            for batch in batches:
                if not np.isfinite(batch).all():
                    key = "backbone.weights or backbone.layer"
                    raise stage.UserError(f"{key}: a feature is NaN or exceeds float16 (65504); choose others")
                file.write(batch.tobytes())
                done += len(batch)
                bar.update(len(batch))
            assert done == len(views)
        with stage.atomic_output(artifacts.FEATURES.parent) as out:
            out.mkdir()
            save_file(kept, out / artifacts.TRUNK.name)
            size = unfinished.stat().st_size
            shutil.move(unfinished, out / artifacts.FEATURES.name)
    return f"{len(views)} views -> {' x '.join(map(str, shape[1:]))} of float16, {size / 1e6:.0f} MB"


if __name__ == "__main__":
    stage.run(main)
