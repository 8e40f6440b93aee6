"""A corpus out of an operator's own texts, what `inspect` says of one, and the commands."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest
from click.testing import CliRunner, Result

from emcd.errors import ConfigError
from emcd_validator.corpus import Leaf, find_fault, load_corpus
from emcd_validator.corpus_build import build_leaves, limit_languages
from emcd_validator.corpus_cli import corpus
from emcd_validator.corpus_report import inspect_leaves
from emcd_validator.corpus_source import Document, read_documents
from emcd_validator.corpus_text import generate_leaves
from emcd_validator.language import guess_language
from emcd_validator.near_duplicate import NearDuplicates
from emcd_validator.profile import DEFAULT, Profile, load_profile

NAMES = "river stone cloud letter bridge engine winter garden paper signal harbour museum".split()  # noqa: SIM905
PLAIN = Profile(long=0.0, turns=((1, 1.0),), inputs=((1, 1.0),), words=((5, 20, 1.0),))


def write_prose(paragraphs: int, seed: int = 1) -> str:
    """Paragraphs of which no two are alike."""
    draw = Random(seed)

    def sentence() -> str:
        return " ".join(draw.choices(NAMES, k=draw.randint(6, 14))).capitalize() + f" {draw.random():.6f}."

    return "\n\n".join(" ".join(sentence() for _ in range(draw.randint(1, 5))) for _ in range(paragraphs))


def build(text: str, profile: Profile = DEFAULT, seed: int = 1) -> list[Leaf]:
    return list(build_leaves([Document(units=text.split("\n\n"))], profile, Random(seed)))


def test_built_leaves_use_every_passage_once_and_as_it_stands() -> None:
    text = write_prose(200)
    leaves = build(text)
    texts = [text for leaf in leaves for text in leaf.texts]
    assert len(texts) == len(set(texts)) > 10
    assert all(passage in text for passage in texts)
    assert not any(map(find_fault, leaves))


def test_built_leaves_have_the_profiles_shares() -> None:
    profile = Profile(
        chat=1.0, stream=1.0, system=0.0, temperatures=((0.5, 1.0),), max_tokens=(("unset", 1.0),)
    )
    calls = [leaf.call for leaf in build(write_prose(300), profile)]
    assert calls
    assert {(call.endpoint, call.stream, call.system) for call in calls if call} == {("chat", True, "")}
    assert {(call.temperature_milli, call.max_tokens) for call in calls if call} == {(500, 0)}


def test_built_leaves_do_not_begin_where_the_file_begins() -> None:
    text = write_prose(60)
    firsts = {build(text, PLAIN, seed)[0].texts[0] for seed in range(8)}
    assert len(firsts) > 4


def test_near_duplicates_are_left_out() -> None:
    one = " ".join(f"{NAMES[i % 12]} {i}" for i in range(60))
    seen = NearDuplicates()
    assert not seen.add(one)
    assert seen.add(one + " and a word more")
    assert seen.add(one.upper())
    assert not seen.add(" ".join(f"{NAMES[i % 12]} {i + 900}" for i in range(60)))
    assert not seen.add("short text")
    assert seen.add("Short text!")
    copies = "\n\n".join([one] * 20)
    assert len(build(copies, PLAIN)) <= 1


def test_chat_log_gives_conversations_of_odd_turns(tmp_path: Path) -> None:
    log = tmp_path / "chat.txt"
    log.write_text("User: how are you\nAssistant: fine\nUser: and now?\nAI: still fine\nUser: bye\n", "utf-8")
    (document,) = read_documents(log)
    assert document.turns == ["how are you", "fine", "and now?", "still fine", "bye"]
    leaves = list(build_leaves([document], Profile(turns=((3, 1.0),)), Random(1)))
    assert leaves[0].texts == ("how are you", "fine", "and now?")
    assert leaves[0].call is not None
    assert leaves[0].call.turns == 3


def test_json_lines_give_conversations_and_bad_lines_are_passed_over(tmp_path: Path) -> None:
    file = tmp_path / "chats.jsonl"
    messages = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": "a"},
    ]
    rows = [
        json.dumps({"messages": messages}),
        "not json",
        '{"text": "one\\n\\ntwo"}',
        "[1, 2]",
        '{"messages": 5}',
    ]
    file.write_text("\n".join(rows), "utf-8")
    documents = read_documents(file)
    assert [d.turns for d in documents if d.turns] == [["u", "a"]]
    assert [d.units for d in documents if d.units] == [["one", "two"]]


def test_code_is_cut_by_blocks_and_keeps_its_form(tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    file.write_text("def f():\n    return 1\n\n\n    x = 2\n", "utf-8")
    (document,) = read_documents(file)
    assert document.is_code
    assert document.units == ["def f():\n    return 1", "    x = 2"]


def test_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.bin"
    file.write_bytes(b"ab\0cd")
    with pytest.raises(ConfigError, match="EMC-1861"):
        read_documents(file)
    with pytest.raises(ConfigError, match="EMC-1861"):
        read_documents(tmp_path / "none.txt")


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("The quick brown fox and the dog are in the garden", "en"),
        ("Der Hund ist nicht im Haus und die Katze auch nicht", "de"),
        ("Le chat est dans la maison avec les enfants", "fr"),
        ("def f(x):\n    return x + 1\n\nclass A:\n    pass", "code"),
        ("В этом году было много снега", "ru"),
        ("今日はとても良い天気です", "ja"),
        ("今天天气很好我们去公园", "zh"),
        ("xyzzy", "other"),
    ],
)
def test_language_is_guessed(text: str, language: str) -> None:
    assert guess_language(text) == language


def test_languages_are_limited_to_their_shares() -> None:
    def leaf(text: str) -> Leaf:
        return Leaf(bytes(16), (text,), False, "")

    english = [leaf(f"the house and the garden of number {i}") for i in range(30)]
    german = [leaf(f"das Haus und der Garten nicht mit Nummer {i}") for i in range(10)]
    kept = limit_languages(english + german, {"en": 1.0, "de": 1.0})
    assert (
        len([x for x in kept if "the" in x.texts[0]]) == len([x for x in kept if "das" in x.texts[0]]) == 10
    )
    assert limit_languages(english, {}) == english
    assert limit_languages(english, {"en": 1.0, "fr": 1.0}) == []


def test_report_of_a_generated_corpus_warns_of_it_and_of_real_text_does_not() -> None:
    generated = inspect_leaves(list(generate_leaves(400, Random(1))))
    assert generated.generated > 0.8
    assert any("generated" in text for text in generated.warnings)


def test_report_warns_of_what_is_uniform() -> None:
    uniform = Profile(
        stream=1.0, turns=((1, 1.0),), inputs=((1, 1.0),), words=((10, 12, 1.0),), long=0.0, whole=0.0
    )
    leaves = build(write_prose(1500), uniform)
    assert len(leaves) >= 200
    warnings = " ".join(inspect_leaves(leaves).warnings)
    for word in ("are advised", "same way", "more than one turn", "first", "about as long"):
        assert word in warnings, word


def test_report_counts_copies_and_leaves_of_the_first_form() -> None:
    leaf = Leaf(bytes(16), ("one two three four five six seven eight nine",), False, "")
    report = inspect_leaves([leaf] * 10)
    assert report.duplicates == 9
    assert report.first_form == 10
    assert any("copies" in text for text in report.warnings)
    assert any("older form" in text for text in report.warnings)


def run(*words: str) -> Result:
    return CliRunner().invoke(corpus, list(words))


def test_build_writes_a_private_corpus_and_inspect_reads_it(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "a.txt").write_text(write_prose(400), "utf-8")
    (tmp_path / "own" / "b.md").write_text(write_prose(400, seed=2), "utf-8")
    (tmp_path / "own" / "c.bin").write_bytes(b"\0")
    out = tmp_path / "corpus.jsonl"
    built = run("build", str(tmp_path / "own"), "--out", str(out), "--leaves", "20", "--json")
    assert built.exit_code == 0, built.output
    assert json.loads(built.stdout)["leaves"] == 20 == len(load_corpus(out).leaves)
    shown = run("inspect", str(out))
    assert "leaves      20" in shown.output
    assert "warning: 20 leaves" in shown.output
    assert json.loads(run("inspect", str(out), "--json").stdout)["leaves"] == 20


def test_build_of_generated_leaves_says_that_they_are_weak(tmp_path: Path) -> None:
    result = run("build", "--generate", "60", "--out", str(tmp_path / "corpus.jsonl"))
    assert result.exit_code == 0, result.output
    assert "weak" in result.stderr


def test_build_that_can_not_be_done_says_why(tmp_path: Path) -> None:
    own, out = tmp_path / "a.txt", tmp_path / "corpus.jsonl"
    own.write_text("One line.", "utf-8")
    assert "EMC-1861" in run("build", str(own), "--out", str(out)).output
    assert "EMC-1861" in run("build", "--out", str(out)).output
    own.write_bytes(b"\0")
    assert "EMC-1861" in run("build", str(own), "--out", str(out)).output
    profile = tmp_path / "profile.toml"
    profile.write_text("chat = 3", "utf-8")
    assert "EMC-1858" in run("build", str(own), "--profile", str(profile), "--out", str(out)).output
    assert not out.exists()


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("chat = 1.5", "chat"),
        ("chats = 1", "chats"),
        ("turns = [[2, 1.0]]", "odd"),
        ("turns = []", "turns"),
        ("turns = [[1, -1.0]]", "weights"),
        ("temperatures = [[3.0, 1.0]]", "temperatures"),
        ('temperatures = [["none", 1.0]]', "temperatures"),
        ("top_p = [[0.0, 1.0]]", "top_p"),
        ("max_tokens = [[1, 1.0]]", "max_tokens"),
        ("inputs = [[17, 1.0]]", "inputs"),
        ("words = [[9, 3, 1.0]]", "words"),
        ("long_words = [9, 3]", "long_words"),
        ("clients = { netscape = 1.0 }", "netscape"),
        ("clients = {}", "clients"),
        ("languages = { en = 0.0 }", "languages"),
        ('system_prompts = [[" ", 1.0]]', "system prompt"),
        ("system_prompts = []", "system_prompts"),
        ("chat = ", ""),
    ],
)
def test_profile_fault_names_its_field(tmp_path: Path, text: str, word: str) -> None:
    file = tmp_path / "profile.toml"
    file.write_text(text, "utf-8")
    with pytest.raises(ConfigError, match=f"EMC-1858.*{word}"):
        load_profile(file)


def test_profile_missing_or_too_large_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="EMC-1858"):
        load_profile(tmp_path / "none.toml")
    file = tmp_path / "profile.toml"
    file.write_text("#" * 300_000, "utf-8")
    with pytest.raises(ConfigError, match="EMC-1858"):
        load_profile(file)
    assert load_profile(None) == DEFAULT
