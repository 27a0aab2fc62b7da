# SPDX-License-Identifier: Apache-2.0
"""The loader: order, failures, bounds, interrupts; and images that lie in memory."""

import _thread
import threading
import time

import cv2
import numpy as np
import pytest
import torch

from fundad_fast.data import (
    ArraySource,
    BatchStream,
    DataError,
    InputSpec,
    Item,
    Loader,
    ReadError,
    prepare,
    read_image,
)

SPEC = InputSpec(image_size=24, fov="none")


def workers():
    return [t for t in threading.enumerate() if t.name.startswith("fundad-read")]


@pytest.fixture
def mixed(tmp_path):
    """Twelve items, of which 3, 4, 5 and 11 cannot be used, each for another reason."""
    rng = np.random.default_rng(0)
    items = []
    for i in range(12):
        path = tmp_path / f"{i:02d}.{'jpg' if i % 2 else 'png'}"
        shape = {4: (8, 8, 3), 5: (30, 40)}.get(i, (30 + i, 40, 3))
        cv2.imwrite(str(path), rng.integers(0, 256, shape).astype(np.uint8))
        items.append(Item(f"item {i}", str(path), label=i % 2))
    (tmp_path / "03.jpg").write_bytes(b"")
    items[11] = Item("item 11", str(tmp_path / "gone.png"))
    return items


BAD = {3: "unreadable", 4: "too_small", 5: "unsupported", 11: "unreadable"}


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("batch_size", [1, 3, 12, 50])
def test_order_and_failures_are_the_same_for_any_batch_and_threads(mixed, batch_size, threads):
    loader = Loader(mixed, SPEC, batch_size=batch_size, threads=threads)
    chunks = list(loader)
    assert len(chunks) == len(loader) == -(-12 // batch_size)
    assert [len(chunk) for chunk in chunks][:-1] == [batch_size] * (len(chunks) - 1)
    good = [item for chunk in chunks for item in chunk.items]
    assert good == [item for i, item in enumerate(mixed) if i not in BAD]
    failures = [failure for chunk in chunks for failure in chunk.failures]
    assert [(f.item, f.status) for f in failures] == [(mixed[i], s) for i, s in BAD.items()]
    assert all(f.error and "\n" not in f.error for f in failures)
    images = torch.cat([chunk.batch.image for chunk in chunks])
    for item, image in zip(good, images):
        alone = prepare(read_image(item.path), SPEC).image
        torch.testing.assert_close(image, alone, rtol=0, atol=0)
    for chunk in chunks:
        assert chunk.batch.id == tuple(item.id for item in chunk.items)
        assert len(chunk.prepared) == len(chunk.ms_read) == len(chunk.items) == len(chunk.batch)
        assert chunk.batch.image.shape == (len(chunk.items), 3, 24, 24)
        assert all(ms > 0 for ms in chunk.ms_read)
        for i, prepared in enumerate(chunk.prepared):
            assert prepared.image.data_ptr() == chunk.batch.image[i].data_ptr()


def test_it_may_be_walked_again_and_leaves_no_threads(mixed):
    loader = Loader(mixed, SPEC, batch_size=4, threads=3)
    first, second = list(loader), list(loader)
    assert [c.items for c in first] == [c.items for c in second]
    torch.testing.assert_close(first[0].batch.image, second[0].batch.image, rtol=0, atol=0)
    assert workers() == []


def test_no_items_no_chunks():
    assert list(Loader([], SPEC)) == []


def test_masks_are_stacked_with_the_field_of_view(tmp_path):
    y, x = np.mgrid[:60, :60]
    image = np.where(np.hypot(x - 30, y - 30) < 25, 150, 0).astype(np.uint8)
    for i in range(2):
        cv2.imwrite(str(tmp_path / f"{i}.png"), np.stack([image] * 3, 2))
    items = [Item(str(i), str(tmp_path / f"{i}.png")) for i in range(2)]
    (chunk,) = Loader(items, InputSpec(image_size=30), batch_size=2)
    assert chunk.batch.mask.shape == (2, 30, 30)
    assert chunk.batch.mask.dtype == torch.bool
    assert chunk.prepared[1].mask.data_ptr() == chunk.batch.mask[1].data_ptr()
    assert 0.4 < chunk.batch.mask.float().mean() < 0.6
    (chunk,) = Loader(items, SPEC, batch_size=2)
    assert chunk.batch.mask is None


def test_the_limit_on_size_reaches_the_reader(mixed):
    (chunk,) = Loader(mixed[:2], SPEC, batch_size=2, max_megapixels=0.00121)
    assert [item.id for item in chunk.items] == ["item 0"]
    assert [failure.status for failure in chunk.failures] == ["too_large"]


def test_pages_of_the_specification_reach_the_reader(tmp_path):
    import tifffile

    tifffile.imwrite(tmp_path / "a.tif", np.zeros((3, 20, 20), np.uint8), photometric="minisblack")
    items = [Item("a", str(tmp_path / "a.tif"))]
    spec = SPEC.model_copy(update={"channels": "grey"})
    (chunk,) = Loader(items, spec)
    assert "3 pages" in chunk.failures[0].error
    (chunk,) = Loader(items, spec.model_copy(update={"pages": "first"}))
    assert len(chunk.items) == 1


@pytest.mark.parametrize(
    "options", [{"batch_size": 0}, {"threads": 0}, {"max_megapixels": 0}, {"max_megapixels": -1}]
)
def test_options_are_checked(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        Loader([], SPEC, **options)


class Slow:
    """A source that says who reads, and how much was read."""

    any_depth = False

    def __init__(self, n, seconds=0.0, at=None):
        self.items = tuple(Item(str(i), "") for i in range(n))
        self.seconds, self.at = seconds, at
        self.reads, self.torch_threads = 0, set()
        self.lock = threading.Lock()

    def read(self, index, spec, max_megapixels):
        with self.lock:
            self.reads += 1
            self.torch_threads.add(torch.get_num_threads())
        time.sleep(self.seconds)
        if self.at is not None:
            self.at(index)
        return np.full((20, 20, 3), index % 256, np.uint8)


def test_reading_ahead_is_bounded():
    source = Slow(200)
    for count, _ in enumerate(Loader(source, SPEC, batch_size=4, threads=2), start=1):
        time.sleep(0.02)
        assert source.reads <= 4 * count + 4 + 4
        if count == 5:
            assert source.reads > 4 * count  # it does read ahead
            break


def test_one_thread_reads_while_the_model_works_on_the_batch_before():
    source = Slow(8)
    walk = iter(Loader(source, SPEC, batch_size=4, threads=1))
    next(walk)
    deadline = time.monotonic() + 5
    while source.reads < 8 and time.monotonic() < deadline:
        time.sleep(0.005)
    assert source.reads == 8
    walk.close()


def test_leaving_early_ends_the_threads_without_reading_the_rest():
    source = Slow(1000, seconds=0.002)
    for _ in Loader(source, SPEC, batch_size=20, threads=1):
        break
    assert workers() == []
    assert source.reads < 35  # 20 more were waiting


def test_an_error_of_the_caller_ends_the_threads():
    with pytest.raises(ZeroDivisionError):
        for _ in Loader(Slow(100), SPEC, batch_size=2, threads=3):
            1 / 0  # noqa: B018
    assert workers() == []


def test_an_interrupt_ends_the_threads():
    source = Slow(500, seconds=0.002, at=lambda i: _thread.interrupt_main() if i == 20 else None)
    with pytest.raises(KeyboardInterrupt):
        for _ in Loader(source, SPEC, batch_size=4, threads=2):
            time.sleep(0.0001)
        time.sleep(1)  # where the signal comes late
    assert workers() == []
    assert source.reads < 500


def test_memory_that_runs_out_is_that_items_failure():
    def fail(index):
        if index == 1:
            raise MemoryError
        if index == 2:
            raise RuntimeError("DefaultCPUAllocator:\n can't allocate memory")

    (chunk,) = Loader(Slow(4, at=fail), SPEC, batch_size=4)
    assert [item.id for item in chunk.items] == ["0", "3"]
    assert [(f.item.id, f.status) for f in chunk.failures] == [("1", "failed"), ("2", "failed")]
    assert chunk.failures[0].error == "MemoryError: not enough memory for this image"
    assert chunk.failures[1].error == "RuntimeError: DefaultCPUAllocator: can't allocate memory"


@pytest.mark.parametrize(
    "error, said",
    [
        (KeyError("a"), "KeyError: 'a'"),
        (cv2.error("line one\n line two"), "error: line one line two"),
        (AssertionError(), "AssertionError"),
    ],
)
def test_any_error_of_one_image_is_that_items_failure(error, said):
    def fail(index):
        if index == 1:
            raise error

    (chunk,) = Loader(Slow(3, at=fail), SPEC, batch_size=4)
    assert [item.id for item in chunk.items] == ["0", "2"]
    assert [(f.item.id, f.status, f.error) for f in chunk.failures] == [("1", "failed", said)]
    assert chunk.batch.image[:, 0, 0, 0].tolist() == pytest.approx([0, 2 / 255])


def test_any_error_of_preparing_is_that_items_failure(monkeypatch):
    from fundad_fast.data import loader

    def prepare_but(pixels, *args, **more):
        if pixels.max() == 2:
            raise cv2.error("no")
        return prepare(pixels, *args, **more)

    monkeypatch.setattr(loader, "prepare", prepare_but)
    (chunk,) = Loader(Slow(3), SPEC, batch_size=4)
    assert [(f.item.id, f.error) for f in chunk.failures] == [("2", "error: no")]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_interrupts_and_exits_pass(kind):
    def end(index):
        if index == 2:
            raise kind

    with pytest.raises(kind):
        list(Loader(Slow(4, at=end), SPEC))
    assert workers() == []


def test_a_strip_beside_photographs_is_refused_alone(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.full((16, 40000, 3), 90, np.uint8))
    spec = InputSpec(image_size=24)
    (chunk,) = Loader([Item("a", str(tmp_path / "a.png"))], spec)
    assert [f.status for f in chunk.failures] == ["no_fov"]


def test_torch_uses_one_thread_in_each_worker_and_as_many_as_before_elsewhere():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        source = Slow(20)
        list(Loader(source, SPEC, batch_size=4, threads=2))
        assert source.torch_threads == {1}
        assert torch.get_num_threads() == 3
        seen = []
        other = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
        other.start()
        other.join()
        assert seen == [3]
    finally:
        torch.set_num_threads(before)


def test_batches_for_fit_leave_out_empty_ones_and_remember_failures(mixed):
    stream = BatchStream(Loader(mixed, SPEC, batch_size=1, threads=2))
    assert [batch.id[0] for batch in stream] == [f"item {i}" for i in range(12) if i not in BAD]
    assert sorted(stream.failures) == sorted(f"item {i}" for i in BAD)
    assert len(list(stream)) == 8
    assert len(stream.failures) == 4


# -- images in memory ------------------------------------------------------------------------------

PIXELS = np.random.default_rng(1).integers(0, 256, (5, 24, 24, 3)).astype(np.uint8)


class Frames(torch.utils.data.Dataset):
    def __init__(self, make):
        self.make = make

    def __len__(self):
        return 5

    def __getitem__(self, i):
        return self.make(i)


def as_float(i=slice(None)):
    axes = (2, 0, 1) if isinstance(i, int) else (0, 3, 1, 2)
    return torch.from_numpy(PIXELS[i].transpose(*axes).astype(np.float32) / 255)


@pytest.mark.parametrize(
    "data",
    [
        PIXELS,
        torch.from_numpy(PIXELS),
        as_float(),
        as_float().double(),
        as_float().numpy(),
        list(PIXELS),
        [as_float(i) for i in range(5)],
        Frames(lambda i: PIXELS[i]),
        Frames(lambda i: (as_float(i), 0)),
        Frames(lambda i: [torch.from_numpy(PIXELS[i]), "name"]),
    ],
    ids=lambda d: type(d).__name__,
)
def test_every_form_gives_the_same_images(data):
    source = ArraySource(data)
    assert [item.id for item in source.items] == ["0", "1", "2", "3", "4"]
    images = torch.cat([c.batch.image for c in Loader(source, SPEC, batch_size=2, threads=2)])
    torch.testing.assert_close(images, as_float(), rtol=0, atol=1e-6)


def test_labels_and_ids():
    source = ArraySource(PIXELS, labels=[0, 1, 0, 1, 1], ids=list("abcde"))
    assert [item.label for item in source.items] == [0, 1, 0, 1, 1]
    assert [item.id for item in source.items] == list("abcde")
    with pytest.raises(DataError, match="3 labels for 5 images"):
        ArraySource(PIXELS, labels=[0, 1, 0])
    with pytest.raises(DataError, match="0 .healthy. or 1"):
        ArraySource(PIXELS, labels=[0, 1, 2, 0, 0])
    with pytest.raises(DataError, match="differ"):
        ArraySource(PIXELS, ids=list("aabcd"))


def test_images_of_any_sizes_and_kinds():
    sizes = [PIXELS[0], PIXELS[1, :20, :17], PIXELS[2, :3]]
    (chunk,) = Loader(ArraySource(sizes), SPEC)
    assert [item.id for item in chunk.items] == ["0", "1"]
    assert chunk.prepared[1].width == 17
    assert [(f.item.id, f.status) for f in chunk.failures] == [("2", "too_small")]
    assert ArraySource(PIXELS).kind() == ("rgb", 8)
    assert ArraySource(PIXELS[..., :1].astype(np.uint16)).kind() == ("grey", 16)
    assert ArraySource(as_float()[:, :1]).kind() == ("grey", 32)


@pytest.mark.parametrize(
    "data, words",
    [
        (PIXELS[0], "add an axis in front"),
        (PIXELS[..., 0], "add an axis in front"),
        (PIXELS[..., None], "5 axes"),
        (PIXELS.astype(np.int64), "type int64"),
        (PIXELS.transpose(0, 3, 1, 2), "channels seem to be at the other end"),
        (as_float().permute(0, 2, 3, 1), "channels seem to be at the other end"),
        (as_float() * 255, r"must lie in \[0, 1\]; divide 8-bit"),
        (as_float() - 0.5, r"must lie in \[0, 1\]"),
        (PIXELS[..., [0, 1]], "c = 1 or 3"),
        (PIXELS[:0], "no images"),
        ([], "no images"),
        (3, "images of type int"),
        ("folder", "images of type str"),
        ((x for x in PIXELS), "images of type generator"),
    ],
)
def test_arrays_that_are_wrong_say_what_is_wanted(data, words):
    with pytest.raises(DataError, match=words) as caught:
        ArraySource(data)
    assert "\n" not in str(caught.value)


def test_single_samples_that_are_wrong_are_rows():
    nan = as_float(1).clone()
    nan[0, 3, 3] = np.nan
    samples = [PIXELS[0], nan, as_float(2) * 2, "text", PIXELS[4].astype(np.int32)]
    (chunk,) = Loader(ArraySource(samples), SPEC, batch_size=5)
    assert [item.id for item in chunk.items] == ["0"]
    status = {f.item.id: f.status for f in chunk.failures}
    assert status == {"1": "non_finite", "2": "unsupported", "3": "unsupported", "4": "unsupported"}
    with pytest.raises(DataError, match="the first image: an image of type str"):
        ArraySource(["text"]).kind()


def test_a_nan_in_an_array_is_that_images_affair():
    images = as_float().clone()
    images[2, 0, 5, 5] = np.nan
    (chunk,) = Loader(ArraySource(images), SPEC)
    assert [(f.item.id, f.status) for f in chunk.failures] == [("2", "non_finite")]


def test_a_dataset_that_raises():
    def broken(i):
        if i == 3:
            raise OSError("disk\ngone")
        return PIXELS[i]

    (chunk,) = Loader(ArraySource(Frames(broken)), SPEC)
    assert [(f.item.id, f.status) for f in chunk.failures] == [("3", "failed")]
    assert chunk.failures[0].error == "the Dataset raised OSError: disk gone"


def test_a_dataset_is_asked_by_one_thread_at_a_time():
    inside, most = [], []

    def look(i):
        inside.append(i)
        most.append(len(inside))
        time.sleep(0.002)
        inside.remove(i)
        return PIXELS[i]

    list(Loader(ArraySource(Frames(look)), SPEC, batch_size=1, threads=4))
    assert max(most) == 1


def test_large_images_in_memory_are_limited_too():
    (chunk,) = Loader(ArraySource(PIXELS), SPEC, max_megapixels=0.0005)
    assert {f.status for f in chunk.failures} == {"too_large"}


def test_a_read_error_survives_pickling():
    import pickle

    error = pickle.loads(pickle.dumps(ReadError("no_fov", "why")))
    assert (error.status, error.reason) == ("no_fov", "why")


def test_the_package_names_what_it_has():
    from fundad_fast import data

    assert set(data.__all__) <= set(dir(data))
    assert all(getattr(data, name) is not None for name in data.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        data.nothing  # noqa: B018


def test_real_photographs(packs):
    files = sorted((packs / "idrid_512" / "test" / "dr").glob("*.jpg"))[:6]
    items = [Item(path.name, str(path)) for path in files]
    spec = InputSpec(image_size=256)
    whole = [chunk.batch for chunk in Loader(items, spec, batch_size=6, threads=2)]
    single = [chunk.batch for chunk in Loader(items, spec, batch_size=1, threads=1)]
    torch.testing.assert_close(whole[0].image, torch.cat([b.image for b in single]), rtol=0, atol=0)
    assert torch.equal(whole[0].mask, torch.cat([b.mask for b in single]))
    assert 0.6 < whole[0].mask.float().mean() < 0.75
