"""Golden vectors: honest models pass them on any number of threads, anything cheaper does not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from emcd.errors import ConfigError
from emcd.inference import golden as golden_module
from emcd.inference.cheaper_graph import CHEATS, Cheat, write_cheaper_graph
from emcd.inference.golden import (
    check_embedding_golden,
    check_golden,
    check_model,
    make_embedding_golden,
    require_golden,
)
from emcd.inference.golden_file import EmbeddingGolden, TextGolden, read_golden, write_golden
from emcd.inference.golden_text import GOLDEN_TEXTS
from emcd.inference.golden_tokens import check_text_golden, make_text_golden
from emcd.inference.manifest import TextManifest
from emcd.inference.minilm import MINILM_MANIFEST, MINILM_NAME, ModelFiles, read_minilm_golden
from emcd.inference.model_folder import ModelFolder, hash_files, load_model_folder, write_model_folder
from tests.support.decoder_model import TOY, ToyDecoder, make_toy, toy_decoder
from tests.support.inference_model import fp32_files, int8_files, shared_models_dir

__all__ = ["fp32_files", "int8_files", "toy_decoder"]


@pytest.fixture(scope="module")
def toy_golden(toy_decoder: ToyDecoder) -> bytes:
    return make_text_golden(
        toy_decoder.onnx, toy_decoder.tokenizer, context_tokens=TOY.context, stop_tokens=(5,)
    )


@pytest.fixture(scope="module")
def toy_manifest(toy_decoder: ToyDecoder, toy_golden: bytes) -> TextManifest:
    return TextManifest(
        name="toy",
        files=hash_files(_files(toy_decoder, toy_golden)),
        context_tokens=TOY.context,
        vocab_tokens=TOY.vocab,
        bos_token=None,
        stop_tokens=(5,),
    )


def _files(toy: ToyDecoder, golden: bytes) -> dict[str, bytes | Path]:
    return {"model.onnx": toy.onnx, "tokenizer.json": toy.tokenizer, "golden.json": golden}


def test_embedder_passes_on_other_threads_and_its_int8_copy_does_not(
    fp32_files: ModelFiles, int8_files: ModelFiles
) -> None:
    data = read_minilm_golden()
    for threads in (1, 2):
        found = check_embedding_golden(MINILM_MANIFEST, fp32_files, data, threads=threads)
        assert (found.ok, found.cases) == (True, len(GOLDEN_TEXTS))
        assert found.worst_e12 < 10**11  # a tenth of what is allowed

    cheat = check_embedding_golden(MINILM_MANIFEST, int8_files, data)
    assert not cheat.ok
    assert "allowed 1.0e-04" in cheat.detail


def test_golden_vectors_of_the_program_are_those_of_its_model(fp32_files: ModelFiles) -> None:
    made = read_golden("made", make_embedding_golden(fp32_files, MINILM_MANIFEST.max_tokens), EmbeddingGolden)
    assert made.texts == read_golden("kept", read_minilm_golden(), EmbeddingGolden).texts
    assert check_model(shared_models_dir(), MINILM_NAME).ok


def test_text_model_passes_and_was_made_of_16_prompts(
    toy_manifest: TextManifest, toy_decoder: ToyDecoder, toy_golden: bytes
) -> None:
    golden = read_golden("toy", toy_golden, TextGolden)
    assert len(golden.cases) == len(GOLDEN_TEXTS) == 16
    assert len({case.seeded.tokens for case in golden.cases}) > 8  # it does not say the same to all
    assert {case.greedy.temperature for case in golden.cases} == {0.0}
    for threads in (1, 2):
        found = check_text_golden(toy_manifest, toy_decoder.onnx, toy_golden, threads=threads)
        assert (found.ok, found.cases) == (True, 16)


@pytest.mark.parametrize("cheat", CHEATS)
def test_text_model_cheapened_in_any_known_way_does_not_pass(
    toy_manifest: TextManifest, toy_decoder: ToyDecoder, toy_golden: bytes, tmp_path: Path, cheat: Cheat
) -> None:
    write_cheaper_graph(toy_decoder.onnx, tmp_path / "model.onnx", cheat)
    assert not check_text_golden(toy_manifest, tmp_path / "model.onnx", toy_golden).ok


def _swap_token(golden: TextGolden) -> TextGolden:
    """The tokens of one seeded answer as another seed would have drawn them."""
    first, second, *rest = golden.cases
    changed = msgspec.structs.replace(first.seeded, seed=second.seeded.seed + 99)
    return TextGolden((msgspec.structs.replace(first, seeded=changed), second, *rest))


def _shift_logprob(golden: TextGolden) -> TextGolden:
    first, *rest = golden.cases
    rows = tuple(tuple((token, value + 1e-3) for token, value in row) for row in first.greedy.logprobs)
    changed = msgspec.structs.replace(first.greedy, logprobs=rows)
    return TextGolden((msgspec.structs.replace(first, greedy=changed), *rest))


@pytest.mark.parametrize("change", [_swap_token, _shift_logprob])
def test_text_golden_of_another_run_does_not_pass(
    toy_manifest: TextManifest,
    toy_decoder: ToyDecoder,
    toy_golden: bytes,
    change: Callable[[TextGolden], TextGolden],
) -> None:
    data = write_golden(change(read_golden("toy", toy_golden, TextGolden)))
    assert not check_text_golden(toy_manifest, toy_decoder.onnx, data).ok


@pytest.mark.parametrize(
    "change",
    [
        lambda g: TextGolden(()),
        lambda g: TextGolden((msgspec.structs.replace(g.cases[0], prompt=()),)),
        lambda g: TextGolden((msgspec.structs.replace(g.cases[0], prompt=(TOY.vocab,)),)),
        lambda g: TextGolden((msgspec.structs.replace(g.cases[0], prompt=(1,) * TOY.context),)),
        lambda g: TextGolden(
            (
                msgspec.structs.replace(
                    g.cases[0], greedy=msgspec.structs.replace(g.cases[0].greedy, logprobs=())
                ),
            )
        ),
    ],
)
def test_text_golden_that_does_not_fit_the_model_is_refused(
    toy_manifest: TextManifest,
    toy_decoder: ToyDecoder,
    toy_golden: bytes,
    change: Callable[[TextGolden], TextGolden],
) -> None:
    data = write_golden(change(read_golden("toy", toy_golden, TextGolden)))
    with pytest.raises(ConfigError) as error:
        check_text_golden(toy_manifest, toy_decoder.onnx, data)
    assert error.value.code == "EMC-1630"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b'{"kind":"text","cases":[]}',
        b'{"kind":"embedding","texts":[],"vectors":[]}',
        b'{"kind":"embedding","texts":["a"],"vectors":["AAAA"]}',
    ],
)
def test_embedding_golden_that_is_none_is_refused(fp32_files: ModelFiles, data: bytes) -> None:
    with pytest.raises(ConfigError) as error:
        check_embedding_golden(MINILM_MANIFEST, fp32_files, data)
    assert error.value.code == "EMC-1630"


def test_folder_is_checked_once_a_process_and_a_failure_every_time(
    toy_manifest: TextManifest,
    toy_decoder: ToyDecoder,
    toy_golden: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runs: list[ModelFolder] = []
    real = golden_module._check_folder

    def counted(folder: ModelFolder, threads: int) -> golden_module.GoldenCheck:
        runs.append(folder)
        return real(folder, threads)

    monkeypatch.setattr(golden_module, "_check_folder", counted)
    write_model_folder(tmp_path, "toy", toy_manifest, _files(toy_decoder, toy_golden))
    for _ in range(3):
        require_golden(load_model_folder(tmp_path, "toy"))
    assert len(runs) == 1

    other = make_toy(tmp_path / "other", seed=2)
    files = _files(other, toy_golden)
    write_model_folder(
        tmp_path, "toy", msgspec.structs.replace(toy_manifest, files=hash_files(files)), files, replace=True
    )
    for _ in range(2):
        with pytest.raises(ConfigError, match="toy: 16 golden prompts") as error:
            require_golden(load_model_folder(tmp_path, "toy"))
        assert error.value.code == "EMC-1634"
    assert len(runs) == 3
    assert not check_golden(load_model_folder(tmp_path, "toy")).ok
