import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from reluguard.training.attacks import attack_named
from reluguard.training.errors import AttackError, TwinError
from reluguard.training.lent import Lent

Write = Callable[[str, str], Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Write a module of the user's into their folder, which is where we work."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])

    def write_module(name: str, text: str) -> Path:
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(textwrap.dedent(text))
        return file

    yield write_module
    for name in [name for name in sys.modules if name.startswith("their")]:
        del sys.modules[name]


def lent(text: str) -> object:
    """Find and make it as a twin."""
    loan = Lent(text, "twin", TwinError)
    found = loan.find()
    assert callable(found)
    return loan.make(found)


def test_the_working_folder_comes_before_what_is_installed(write: Write, tmp_path: Path) -> None:
    """A package `their_training` in the folder wins over one that is installed under that name."""
    write("their_training/__init__.py", "")
    write("their_training/model.py", "def net(): return 'the project'")
    write("site/their_training.py", "raise RuntimeError('a library of that name')")
    sys.path.insert(0, str(tmp_path / "site"))
    assert lent("their_training.model:net") == "the project"
    assert sys.path[0] == str(tmp_path)


@pytest.mark.parametrize(
    ("text", "line", "told"),
    [
        ("import torch\ndef f():\n    return torch.nn.Sequentail()", 3, "AttributeError: .*Sequen"),
        ("import their_other_module", 1, "ModuleNotFoundError: No module named 'their_other_modul"),
        ("from json import dump_it", 1, "ImportError: cannot import name 'dump_it'"),
        ("from reluguard import DetectorError\ndef f():\n    raise DetectorError('no weights')", 3,
         "DetectorError: no weights$"),
        ("def f():\n    weights = {}\n    return weights['w1']", 3, "KeyError: 'w1'"),
        ("def f():\n    return [0](1)", 2, "TypeError: 'list' object is not callable"),
        ("def f(:\n    pass", 1, "SyntaxError: "),
        ("import sys\nsys.exit(3)", 2, "SystemExit: 3"),
        ("def __getattr__(name):\n    return 1 / 0", 2, "ZeroDivisionError: division by zero"),
        ("def f():\n    import json\n    return json.loads('{')", 3, "JSONDecodeError: Expecting"),
        ("def f():\n    assert False", 2, "AssertionError$"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:'list' object is not callable:SyntaxWarning")
def test_an_error_in_lent_code_is_told_as_theirs(
    write: Write, text: str, line: int, told: str
) -> None:
    """The message has the error's own words with the user's file and line, never `can't find`."""
    file = write("their_net.py", text)
    with pytest.raises(TwinError) as caught:
        lent("their_net:f")
    message = str(caught.value)
    assert message.startswith(f"the twin their_net:f failed in {file}, line {line}: ")
    with pytest.raises(TwinError, match=told):
        raise caught.value
    assert caught.value.__cause__ is not None


def test_the_line_is_that_of_the_module_that_failed(write: Write) -> None:
    """Where one module of the project calls another, the last line of theirs is named."""
    write("their_net.py", "import their_layers\ndef f():\n    return their_layers.make()")
    file = write("their_layers.py", "def make():\n    return open('nowhere.pt')")
    with pytest.raises(TwinError, match=r"FileNotFoundError: .*nowhere\.pt") as caught:
        lent("their_net:f")
    assert f"failed in {file}, line 2: " in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("their_absent:f", r"can't find the twin their_absent:f: no module their_absent in"),
        ("their_absent.net:f", r"can't find the twin their_absent.net:f: no module their_absent "),
        ("their_pack.nte:f", r"no module their_pack.nte: their_pack is .*their_pack/__init__\.py$"),
        ("their_pack.net:g", r"their_pack/net\.py has no g, only f, needy$"),
        ("their_pack:g", r"their_pack/__init__\.py has no g, only names of others$"),
        ("their_pack.net:needy", r"expected their_pack.net:needy to need no arguments: needy\(\)"),
        ("their pack:f", "expected a twin of package.module:name, got 'their pack:f'"),
        (":f", "expected a twin of package.module:name, got ':f'"),
        ("their_pack:", "expected a twin of package.module:name, got 'their_pack:'"),
        (".net:f", "expected a twin of package.module:name, got '.net:f'"),
    ],
)  # fmt: skip
def test_what_is_not_there_is_named(write: Write, text: str, message: str) -> None:
    """The message says which part of the name leads nowhere, and where we looked."""
    write("their_pack/__init__.py", "import json")
    write("their_pack/net.py", "import math\ndef f(): return 1\ndef needy(path): return path")
    with pytest.raises(TwinError, match=message):
        lent(text)


def test_an_attack_is_found_and_fails_as_a_twin_does(write: Write) -> None:
    """`--attack` follows the same rules."""
    file = write(
        "their_attacks.py", "class Mine:\n    def __init__(self):\n        self.size = big"
    )
    message = rf"the attack their_attacks:Mine failed in {file}, line 3: NameError: name 'big' is"
    with pytest.raises(AttackError, match=message):
        attack_named("their_attacks:Mine")


def test_a_console_script_looks_into_the_working_folder(write: Write, tmp_path: Path) -> None:
    """Where Python itself leaves the working folder out of its path, names are found."""
    write("their_net.py", "def f(): print('called')")
    code = (
        "from reluguard.training.errors import TwinError\n"
        "from reluguard.training.lent import Lent\n"
        "loan = Lent('their_net:f', 'twin', TwinError)\n"
        "loan.make(loan.find())\n"
    )
    root = Path(__file__).resolve().parents[2]
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "script").write_text(f"import sys\nsys.path.append({str(root)!r})\n{code}")
    done = subprocess.run(
        [sys.executable, tmp_path / "bin" / "script"], capture_output=True, text=True, check=True
    )
    assert done.stdout == "called\n"
