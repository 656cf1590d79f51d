"""pictures: real pictures and digits as files, and their centres in the tagger's size."""

import shutil

from catalog import Job
from digit_data import FILE, read_digits
from efficientnet import CROP, SIZE
from PIL import Image


def build(job: Job) -> None:
    job.say("copying and cropping pictures")
    for name, path in job.files.items():
        if name != FILE:
            shutil.copyfile(path, job.folder / name)
            with Image.open(path) as picture:
                centre(picture.convert("RGB")).save(job.folder / f"{path.stem}_{SIZE}.png")
    with Image.open(job.folder / "coffee.png") as coffee:
        coffee.convert("RGB").save(job.folder / "coffee.jpg", quality=90)
    job.say("writing digits")
    _, held_out = read_digits(job.files[FILE])
    for digit in range(10):
        first = int((held_out.labels == digit).argmax())
        Image.fromarray(held_out.pictures[first]).save(job.folder / f"digit_{digit}.png")


def centre(picture: Image.Image) -> Image.Image:
    """The centre square of a picture in the tagger's size, as tagger_tf crops it in its graph."""
    side = round(CROP * min(picture.size))
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    cropped = picture.crop((left, top, left + side, top + side))
    return cropped.resize((SIZE, SIZE), Image.Resampling.BILINEAR)
