"""No file of the package opens a pickle, runs text as code, or asks a library to, but for the one that `convert` isolates."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "unidetox_ray"
FILES = sorted(PACKAGE.rglob("*.py"))
MODULES = {
    "pickle",
    "cPickle",
    "_pickle",
    "dill",
    "cloudpickle",
    "joblib",
    "shelve",
    "marshal",
    "jsonpickle",
    "pandas",
}
#: Calls by their last two names; those of one name are the builtins.
CALLS = {
    "yaml.load", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "torch.load", "torch.save", "np.load", "numpy.load",
    "os.system", "os.popen", "eval", "exec", "compile", "__import__", "pl.read_pickle",
}  # fmt: skip
#: (file, call) -> what makes it safe, checked below.
ALLOWED = {("unpickle.py", "torch.load"): "weights_only"}


def name_of(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{name_of(node.value).rpartition('.')[2]}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def problems(path: Path, source: str) -> list[str]:
    """What a file does that this package does not do, one entry each."""
    found = []
    for node in ast.walk(ast.parse(source)):
        place = f"{path.name}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import):
            found += [f"{place} import {a.name}" for a in node.names if a.name.split(".")[0] in MODULES]
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            found.append(f"{place} import {node.module}")
        if not isinstance(node, ast.Call):
            continue
        name, given = name_of(node.func), {word.arg: word.value for word in node.keywords}
        value = {word: each.value for word, each in given.items() if isinstance(each, ast.Constant)}
        if name in CALLS:
            needed = ALLOWED.get((path.name, name))
            if needed is None or value.get(needed) is not True:
                found.append(f"{place} {name}")
        for word, bad in (
            ("trust_remote_code", True),
            ("weights_only", False),
            ("allow_pickle", True),
            ("shell", True),
        ):
            if word in given and value.get(word) is not (not bad):
                found.append(f"{place} {word}")
        loads = name.endswith(".from_pretrained") and name.split(".")[0].startswith("Auto")
        if loads and value.get("trust_remote_code") is not False:
            found.append(f"{place} {name} without trust_remote_code=False")
        if loads and name.startswith("AutoModel") and value.get("use_safetensors") is not True:
            found.append(f"{place} {name} without use_safetensors=True")
    return found


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(PACKAGE)) for path in FILES])
def test_a_file_opens_no_pickle_and_runs_no_text(path: Path) -> None:
    assert problems(path, path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle", "from joblib import load", "import dill as d", "torch.load(f)", "torch.load(f, weights_only=False)",
        "np.load(f, allow_pickle=True)", "yaml.load(t, Loader=yaml.Loader)", "eval(t)", "subprocess.run(c, shell=True)",
        "AutoModel.from_pretrained(p, use_safetensors=True)", "AutoModel.from_pretrained(p, trust_remote_code=False)",
        "AutoTokenizer.from_pretrained(p, trust_remote_code=True)", "x.load(f, weights_only=flag)",
    ],
)  # fmt: skip
def test_the_check_finds(line: str) -> None:
    assert problems(Path("any.py"), line)


def test_what_is_allowed_is_there() -> None:
    """An entry that nothing uses any more would let a new call pass."""
    for name, call in ALLOWED:
        assert call in (PACKAGE / name).read_text(encoding="utf-8")
