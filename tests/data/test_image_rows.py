"""Images as rows: every way to give them, what is wrong with one, their classes, and what augmentation does."""

import csv
import io
import json

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from gora.data.augment import augmented
from gora.data.image_preparation import class_names, prepare_images
from gora.data.pictures import decode
from gora.data.rows import Unusable
from gora.errors import GoraError, InputError
from gora.models.image_processor import load_image_reader
from gora.models.source import find_model
from gora.recipe import load_recipe
from gora.recipe.schema import DataSection, MixedSource, ModelSection, SourceSection
from tests.helpers.images import CLASSES, encoded, make_model, picture, write_folder, write_model


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """The same images as a folder, as files of paths, and inside tables."""
    home = tmp_path_factory.mktemp("rows")
    folder = write_folder(home / "folder", 3)
    files = sorted(path.relative_to(home) for path in folder.rglob("*.png"))
    rows = [{"image": str(path), "label": path.parent.name} for path in files]
    with open(home / "paths.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["image", "label"])
        writer.writeheader()
        writer.writerows(rows)
    (home / "paths.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    contents = [(home / row["image"]).read_bytes() for row in rows]
    names = [row["label"] for row in rows]
    structs = pa.array([{"bytes": content, "path": None} for content in contents])
    pq.write_table(pa.table({"image": structs, "label": names}), home / "structs.parquet")
    pq.write_table(pa.table({"image": pa.array(contents, pa.binary()), "label": names}), home / "bytes.parquet")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=CLASSES)})
    columns = {"image": [{"bytes": content, "path": None} for content in contents], "label": names}
    made = datasets.Dataset.from_dict(columns, features=features)
    made.to_parquet(home / "declared.parquet")
    made.save_to_disk(home / "saved")
    write_folder(home / "split" / "train", 3)
    return home


def pixels(image):
    """All of a picture's values, so that a difference shows."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float()


def section(path, **more):
    return DataSection(format="image", train=SourceSection(path=str(path)), **more)


def prepared(data, home, say=lambda line: None, seed=0):
    data = data.model_copy(update={"choices": class_names(data), "cache": str(home / "rows")})
    return prepare_images(data, pixels, seed, say=say)


KINDS = (
    "folder",
    "paths.csv",
    "paths.jsonl",
    "structs.parquet",
    "bytes.parquet",
    "declared.parquet",
    "saved",
    "split",
)


@pytest.mark.parametrize("kind", KINDS)
def test_every_way_to_give_images_gives_the_same_pixels_and_classes(home, kind):
    data = prepared(section(home / kind), home)
    assert data.train.choices == tuple(CLASSES)
    expected = [(name, index) for name in CLASSES for index in range(3)]
    assert len(data.train) == len(expected)
    for place, (name, index) in enumerate(expected):
        row = data.train[place]
        assert row["labels"] == [CLASSES.index(name)]
        original = Image.open(home / "folder" / name / f"{index:03}.png")
        assert torch.equal(row["pixel_values"], pixels(original))
    assert data.counts.summary() == "train 9 of 9, labels blue 33 %, green 33 %, red 33 %"


def test_rows_have_one_fingerprint_however_they_are_given(home):
    found = {prepared(section(home / kind), home).fingerprint for kind in KINDS}
    assert len(found) == 1


def test_files_stay_where_they_are_and_what_lies_in_a_table_is_kept(home):
    in_files, in_table = (prepared(section(home / kind), home).train._store for kind in ("folder", "bytes.parquet"))
    assert in_files.value("data", 0) is None
    assert in_files.value("file", 0).endswith("folder/blue/000.png")
    assert in_table.value("file", 0) is None
    assert in_table.value("data", 0) == (home / "folder/blue/000.png").read_bytes()


def test_a_file_that_changes_after_it_was_checked_is_named(home, tmp_path):
    folder = write_folder(tmp_path / "images", 1)
    data = prepared(section(folder), tmp_path)
    (folder / "green" / "000.png").write_bytes(encoded(picture("green", 77)))
    assert data.train[0]["labels"] == [0]
    with pytest.raises(GoraError, match=r"images/green/000\.png: .* has changed since it was checked\. Put it back"):
        data.train[1]
    again = prepared(section(folder), tmp_path)
    assert torch.equal(again.train[1]["pixel_values"], pixels(picture("green", 77)))
    (folder / "red" / "000.png").unlink()
    with pytest.raises(GoraError, match=r"images/red/000\.png: there is no file"):
        again.train[2]


# --- what is wrong with an image --------------------------------------------------------------------------------------


def test_images_that_cannot_be_read_are_named_with_the_reason(home, tmp_path):
    folder = write_folder(tmp_path / "images", 2)
    whole = encoded(picture("red", 1, size=(200, 150)), "JPEG")
    (folder / "red" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "red" / "empty.png").write_bytes(b"")
    (folder / "green" / "notes.txt").write_text("not a picture")
    (folder / "green" / ".hidden").write_text("of the system")
    with pytest.raises(InputError) as refused:
        prepared(section(folder), tmp_path)
    assert "3 of 9 rows cannot be used" in refused.value.headline
    by_name = {line.partition(": ")[0].rpartition("/")[2]: line for line in refused.value.problems}
    assert "truncated" in by_name["cut.jpg"]
    assert by_name["empty.png"].endswith("the image is empty")
    assert by_name["notes.txt"].endswith("not an image of a format that Pillow knows")
    said = []
    data = prepared(section(folder, bad_rows="skip"), tmp_path, say=said.append)
    assert (len(data.train), data.counts.train.bad) == (6, 3)
    assert "cut.jpg" in said[0]


def test_rows_of_a_table_are_named_by_their_number(tmp_path):
    good = encoded(picture("red", 1))
    columns = {"image": [good, b"nothing", None, good], "label": ["red", "blue", "red", "red"]}
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    with pytest.raises(InputError) as refused:
        prepared(section(tmp_path / "x.parquet", choices=["blue", "red"]), tmp_path)
    assert [line.rpartition("x.parquet ")[2] for line in refused.value.problems] == [
        "row 2: not an image of a format that Pillow knows",
        "row 3: column 'image' must be an image or the path of one, not null",
    ]


def test_a_missing_file_and_an_unknown_class_are_named_by_the_line(tmp_path):
    write_folder(tmp_path / "images", 1)
    (tmp_path / "rows.csv").write_text(
        "image,label\nimages/red/000.png,red\nimages/nowhere.png,red\nimages/red/000.png,rde\n"
    )
    data = section(tmp_path / "rows.csv", choices=["blue", "red"])
    with pytest.raises(InputError) as refused:
        prepared(data, tmp_path)
    first, second = refused.value.problems
    assert "rows.csv:3: there is no file" in first
    assert "rows.csv:4: column 'label' must be the number or the name of a choice, not the text 'rde'" in second
    assert second.endswith("did you mean 'red'?")


def test_a_picture_that_claims_to_be_huge_is_refused_before_it_is_decoded():
    small = encoded(Image.new("L", (4, 4)))
    size = (60_000).to_bytes(4, "big")
    at = small.index(b"IHDR") + 4
    huge = small[:at] + size + size + small[at + 8 :]
    import zlib

    header = huge[at - 4 : at + 13]
    huge = huge[: at + 13] + zlib.crc32(header).to_bytes(4, "big") + huge[at + 17 :]
    with pytest.raises(Unusable, match=r"too large \(Image size \(3600000000 pixels\) exceeds limit"):
        decode(huge)


# --- kinds of pictures ------------------------------------------------------------------------------------------------


def test_grey_alpha_palette_and_deep_pictures_become_rgb():
    grey = Image.fromarray(np.full((4, 6), 90, np.uint8))
    assert decode(encoded(grey)).getpixel((0, 0)) == (90, 90, 90)
    clear = Image.new("RGBA", (6, 4), (10, 20, 30, 0))
    clear.putpixel((0, 0), (10, 20, 30, 255))
    shown = decode(encoded(clear))
    assert (shown.getpixel((0, 0)), shown.getpixel((1, 0))) == ((10, 20, 30), (255, 255, 255))
    half = decode(encoded(Image.new("RGBA", (2, 2), (0, 0, 0, 128))))
    assert half.getpixel((0, 0)) == (127, 127, 127)
    few = Image.new("RGB", (6, 4), (200, 10, 10)).quantize(4)
    assert decode(encoded(few, "GIF")).getpixel((3, 3)) == (200, 10, 10)
    deep = Image.fromarray(np.full((4, 6), 257 * 90, np.uint16))
    assert decode(encoded(deep)).getpixel((0, 0)) == (90, 90, 90)
    cmyk = Image.new("CMYK", (6, 4), (0, 0, 0, 0))
    assert decode(encoded(cmyk, "JPEG")).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("turn", range(1, 9))
def test_pictures_are_turned_as_their_exif_says(turn):
    upright = np.arange(24, dtype=np.uint8).reshape(4, 6) * 10
    # How a camera would have stored it, by the definition of each orientation (EXIF 2.32, tag 0x0112).
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright),
        7: np.rot90(upright, 2).T,
        8: np.rot90(upright, -1),
    }[turn]
    exif = Image.Exif()
    exif[0x0112] = turn
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(stored)).save(file, "PNG", exif=exif)
    assert np.array_equal(np.array(decode(file.getvalue()))[:, :, 0], upright)


# --- classes ----------------------------------------------------------------------------------------------------------


def test_classes_are_named_by_the_data_and_numbers_keep_their_meaning(tmp_path):
    content = encoded(picture("red", 1))
    (tmp_path / "a.png").write_bytes(content)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["z", "a"])})
    rows = {"image": [{"bytes": content, "path": None}] * 2, "label": [0, 1]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "declared.parquet")
    assert class_names(section(tmp_path / "declared.parquet")) == ["z", "a"]
    (tmp_path / "names.csv").write_text("image,label\na.png,10\na.png,9\na.png,b\n")
    assert class_names(section(tmp_path / "names.csv")) == ["9", "10", "b"]
    (tmp_path / "numbers.jsonl").write_text('{"image": "a.png", "label": 2}\n{"image": "a.png", "label": 0}\n')
    numbers = section(tmp_path / "numbers.jsonl")
    assert class_names(numbers) == ["0", "1", "2"]
    with pytest.raises(InputError, match=r"numbers its classes in 'label' and does not name them.*data\.choices"):
        class_names(numbers, in_words=True)
    assert class_names(section(tmp_path / "numbers.jsonl", choices=["p", "q", "r"])) == ["p", "q", "r"]
    with pytest.raises(
        InputError, match=r"has no column 'kind', which data\.label asks for. The columns are 'image', 'la"
    ):
        class_names(section(tmp_path / "numbers.jsonl", label="kind"))


def test_one_class_and_sources_of_other_classes_are_refused(home, tmp_path):
    (tmp_path / "only" / "cat").mkdir(parents=True)
    (tmp_path / "only" / "cat" / "1.png").write_bytes(encoded(picture("red", 1)))
    with pytest.raises(InputError, match="has one class, 'cat': there is nothing to tell apart"):
        class_names(section(tmp_path / "only"))
    both = [MixedSource(path=str(home / "folder")), MixedSource(path=str(tmp_path / "only"))]
    with pytest.raises(InputError, match="do not name the same classes"):
        class_names(DataSection(format="image", train=both))


def test_splits_of_a_folder_are_found_and_a_missing_one_is_named(home, tmp_path):
    data = section(home / "split", eval=SourceSection(path=str(home / "split")))
    with pytest.raises(InputError, match=r"has no split 'test' or 'validation'. Set `split`. Its folders are 'train'"):
        prepared(data, home)
    with pytest.raises(InputError, match="has no split 'tset'"):
        class_names(
            section(home / "split").model_copy(update={"train": SourceSection(path=str(home / "split"), split="tset")})
        )
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "1.png").write_bytes(encoded(picture("red", 1)))
    with pytest.raises(InputError, match="holds neither files of data nor folders of images"):
        class_names(section(tmp_path / "flat"))


# --- augmentation -----------------------------------------------------------------------------------------------------


def test_augmentation_depends_on_seed_epoch_and_row_alone(home):
    examples = prepared(section(home / "folder", augment="crop"), home, seed=3).train
    plain, first, second = examples, examples.in_epoch(0), examples.in_epoch(1)
    again = prepared(section(home / "folder", augment="crop"), home, seed=3).train.in_epoch(1)
    other = prepared(section(home / "folder", augment="crop"), home, seed=4).train.in_epoch(1)
    shapes = {tuple(first[index]["pixel_values"].shape) for index in range(9)}
    assert len(shapes) > 3
    assert all(torch.equal(second[index]["pixel_values"], again[index]["pixel_values"]) for index in range(9))
    for one, another in ((plain, first), (first, second), (second, other)):
        same = [_same(one[index]["pixel_values"], another[index]["pixel_values"]) for index in range(9)]
        assert not all(same)
    # A part of the rows is augmented as it is among all of them.
    some = examples.subset([5, 2]).in_epoch(1)
    assert torch.equal(some[0]["pixel_values"], second[5]["pixel_values"])
    assert examples.in_epoch(1)[3]["input_ids"] == plain[3]["input_ids"]


def _same(one, another):
    return one.shape == another.shape and torch.equal(one, another)


def test_flips_mirror_about_half_and_crops_keep_half_of_the_area():
    image = picture("red", 5, size=(64, 48))
    mirrored = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    flips = [augmented(image, "flip", seed=1, epoch=0, row=row) for row in range(200)]
    assert {flip == mirrored for flip in flips} == {True, False} == {flip == image for flip in flips}
    assert 70 < sum(flip == mirrored for flip in flips) < 130
    sizes = [augmented(image, "crop", seed=1, epoch=0, row=row).size for row in range(200)]
    shares = [width * height / (64 * 48) for width, height in sizes]
    assert 0.45 < min(shares) < 0.6 < 0.9 < max(shares) <= 1
    assert augmented(Image.new("RGB", (1, 1)), "crop", seed=1, epoch=0, row=0).size == (1, 1)


# --- the image processor ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["vit", "clip", "siglip", "swin", "convnext"])
def test_pixels_are_those_of_the_model_s_own_processor(tmp_path, kind):
    folder = write_model(tmp_path / kind, kind)
    head = "image-zero-shot" if kind in ("clip", "siglip") else "image-classification"
    settings = ModelSection(name=str(folder), head=head)
    reader = load_image_reader(settings, find_model(settings))
    image = picture("green", 8, size=(70, 50))
    expected = make_model(kind)[1](image, return_tensors="pt")["pixel_values"][0]
    assert torch.equal(reader.pixels(image), expected)
    assert reader.stored(image).dtype == torch.uint8
    assert (reader.scaled(reader.stored(image)) - expected).abs().max() < 2e-6
    assert reader.scaled(expected) is expected
    assert reader.size == (expected.shape[1], expected.shape[2])


def test_a_processor_whose_images_differ_in_size_is_refused(tmp_path):
    folder = write_model(tmp_path / "vit", "vit")
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "do_resize": False}))
    settings = ModelSection(name=str(folder), head="image-classification")
    source = find_model(settings)
    with pytest.raises(InputError, match=r"images of different shapes \(3 x 30 x 40 and 3 x 40 x 30\)"):
        load_image_reader(settings, source)
    path.unlink()
    with pytest.raises(InputError, match=r"its image processor \(preprocessor_config\.json\) cannot be loaded"):
        load_image_reader(settings, source)


# --- recipes ----------------------------------------------------------------------------------------------------------


def problems_of(tmp_path, *settings):
    path = tmp_path / "recipe.yaml"
    path.write_text("model: {name: x, head: image-classification}\ndata: {format: image, train: {path: rows}}\n")
    with pytest.raises(InputError) as refused:
        load_recipe(str(path), list(settings))
    return " ".join(refused.value.problems)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (["data.format=chat"], "head image-classification takes images, and the format is chat"),
        (["model.head=language"], "format image needs an image head, not language"),
        (["model.quantization=nf4"], "a base in nf4 goes with head: language only"),
        (["data.class_prompts=['a {class}']"], "texts of classes are for head: image-zero-shot"),
        (["model.head=image-zero-shot", "data.class_prompts=['a photo']"], "is the same for every class"),
        (["data.choices=[a, b, a]"], "the class 'a' is named twice"),
        (["model.tokenizer=y"], "an image classifier reads no text"),
        (["data.prompt=text"], "prompt belongs to data.format: instruction"),
        (["data.max_length=64"], "max_length belongs to data.format: instruction or chat or text"),
        (["data.streaming=true", "train.max_steps=3"], "streaming belongs to data.format"),
    ],
)
def test_settings_that_do_not_go_with_images_are_refused(tmp_path, settings, text):
    assert text in problems_of(tmp_path, *settings)


def test_a_recipe_of_plain_texts_is_not_refused_for_turns_that_it_does_not_set(tmp_path):
    path = tmp_path / "text.yaml"
    path.write_text("model: {name: x}\ndata: {format: text, train: {path: rows.jsonl}}\n")
    assert load_recipe(str(path)).recipe.data.format == "text"


def test_models_that_write_about_images_and_models_of_text_are_refused(tmp_path):
    from transformers import BertConfig, LlavaConfig

    LlavaConfig().save_pretrained(tmp_path / "llava")
    BertConfig(num_hidden_layers=1).save_pretrained(tmp_path / "bert")
    for kind in ("vit", "clip"):
        make_model(kind)[0].config.save_pretrained(tmp_path / kind)
    for head, name, text in (
        ("image-classification", "llava", "is a vision-language model, which writes text about images"),
        ("image-zero-shot", "llava", "is a vision-language model"),
        ("image-classification", "bert", "has no form for image classification"),
        ("image-zero-shot", "bert", "is not a CLIP or a SigLIP"),
        (
            "language",
            "vit",
            r"sees images and writes no text\. To tell classes apart give model\.head: image-classification",
        ),
        ("language", "clip", "give model.head: image-zero-shot and data.format: image"),
    ):
        with pytest.raises(InputError, match=text):
            find_model(ModelSection(name=str(tmp_path / name), head=head), weights=False)
