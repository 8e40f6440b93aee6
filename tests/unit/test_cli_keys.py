"""`emcd keys`: passwords from file, environment or prompt; secrets never shown."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from emcd.cli.main import main
from emcd.keys import SigningKey, load_keystore, write_keystore
from emcd.testing import make_key

Run = Callable[..., tuple[int, str, str]]
PASSWORD = "correct horse"
KEY = make_key("imported")


class Terminal(io.StringIO):
    """A standard input with a person at it."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EMCD_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.delenv("EMCD_CONFIG", raising=False)
    monkeypatch.delenv("EMCD_KEY_PASSWORD", raising=False)

    def invoke(*arguments: str, stdin: str = "", terminal: bool = False) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.stdin", Terminal() if terminal else io.StringIO(stdin))
        with pytest.raises(SystemExit) as caught:
            main(["keys", *arguments])
        out, err = capsys.readouterr()
        assert isinstance(caught.value.code, int)
        return caught.value.code, out, err

    return invoke


@pytest.fixture
def password_file(tmp_path: Path) -> str:
    path = tmp_path / "password"
    path.write_text(f"{PASSWORD}\nsecond line\n")
    path.chmod(0o600)
    return str(path)


def test_new_writes_a_keystore_that_opens(run: Run, password_file: str) -> None:
    code, out, _ = run("new", "k.json", "--password-file", password_file, "--kdf", "light", "--json")
    assert code == 0
    assert load_keystore(Path("k.json"), PASSWORD).address == json.loads(out)["address"]


def test_new_takes_the_password_of_the_environment(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMCD_KEY_PASSWORD", PASSWORD)
    assert run("new", "k.json", "--kdf", "light")[0] == 0
    load_keystore(Path("k.json"), PASSWORD)


def test_new_without_a_password_and_a_terminal_is_refused(run: Run) -> None:
    code, _, err = run("new", "k.json")
    assert (code, err[:8]) == (1, "EMC-1108")
    assert not Path("k.json").exists()


def test_new_short_password_is_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMCD_KEY_PASSWORD", "short")
    code, _, err = run("new", "k.json", "--kdf", "light")
    assert (code, err[:8]) == (1, "EMC-1109")


def test_new_never_overwrites(run: Run, password_file: str) -> None:
    Path("k.json").write_text("precious")
    code, _, err = run("new", "k.json", "--password-file", password_file)
    assert (code, err[:8]) == (1, "EMC-1101")
    assert Path("k.json").read_text() == "precious"


def test_password_file_open_to_everybody_is_refused(run: Run, password_file: str) -> None:
    Path(password_file).chmod(0o644)
    code, _, err = run("new", "k.json", "--password-file", password_file)
    assert (code, err[:8]) == (1, "EMC-1106")


def test_import_from_standard_input_shows_no_secret(run: Run, password_file: str) -> None:
    code, out, err = run(
        "import", "k.json", "--from-file", "-", "--password-file", password_file, "--kdf", "light",
        stdin=f"0x{KEY.reveal().hex()}\n",
    )  # fmt: skip
    assert code == 0, err
    assert KEY.reveal().hex() not in out + err
    assert KEY.address in out
    assert load_keystore(Path("k.json"), PASSWORD) == KEY


@pytest.mark.parametrize("text", ["", "0x", "zz" * 32, "00" * 32, "11" * 31, "0x" + "11" * 33])
def test_import_of_no_key_is_refused_without_repeating_it(run: Run, password_file: str, text: str) -> None:
    code, _, err = run("import", "k.json", "--from-file", "-", "--password-file", password_file, stdin=text)
    assert (code, err[:8]) == (1, "EMC-1110")
    assert len(text) < 5 or text not in err


def test_list_and_show_name_addresses_without_a_password(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "data" / "keys"
    write_keystore(folder / "a.json", SigningKey(KEY.reveal()), PASSWORD, kdf="light")
    (folder / "notes.txt").write_text("no keystore")
    (folder / "notes.txt").chmod(0o600)
    _, out, _ = run("list", "--json")
    assert [(row["address"], row["fault"]) for row in json.loads(out)] == [(KEY.address, "")]
    assert run("show", str(folder / "a.json"))[1].startswith(KEY.address)
    (folder / "a.json").chmod(0o644)
    assert "EMC-1106" in run("list")[1]


def test_list_of_an_empty_place_says_so(run: Run) -> None:
    code, out, _ = run("list")
    assert (code, out[:11]) == (0, "no keystore")


def test_show_open_tries_the_password(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_keystore(tmp_path / "a.json", SigningKey(KEY.reveal()), PASSWORD, kdf="light")
    monkeypatch.setenv("EMCD_KEY_PASSWORD", PASSWORD)
    assert "the password fits" in run("show", "a.json", "--open")[1]
    monkeypatch.setenv("EMCD_KEY_PASSWORD", "wrong horse")
    code, _, err = run("show", "a.json", "--open")
    assert (code, err[:8]) == (1, "EMC-1105")
    assert "wrong horse" not in err


def test_new_asks_twice_at_a_terminal(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, object]] = []

    def prompt(_text: str, **options: object) -> str:
        asked.append(options)
        return PASSWORD

    monkeypatch.setattr("click.prompt", prompt)
    assert run("new", "k.json", "--kdf", "light", terminal=True)[0] == 0
    assert asked == [{"hide_input": True, "confirmation_prompt": True, "err": True}]
    load_keystore(Path("k.json"), PASSWORD)
