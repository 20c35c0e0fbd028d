"""Build the built-in corpus from the Python documentation that is installed on every machine where this runs.

It holds the docstrings of the Python standard library, of our dependencies and of their dependencies, and the language reference that
ships as `pydoc_data.topics`. Sources are parsed, never imported. A document is kept if at least half of its five-word runs are new:
libraries have many near-copies, which must not cross from training into test data. About 20 MB of text; collecting it takes some 20 s
on two cores, once for a set of package versions.
"""

from __future__ import annotations

import ast
import inspect
import logging
import re
import sys
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

import datasets
import pyarrow as pa
import xxhash
from pyarrow import parquet

from llm_lightning.atomic_files import write_atomically
from llm_lightning.machine import cores

log = logging.getLogger(__name__)

FORMAT = 2
ROOTS = [
    "torch",
    "lightning",
    "transformers",
    "tokenizers",
    "datasets",
    "torchmetrics",
    "hydra-core",
    "wandb",
    "peft",
    "safetensors",
    "codecarbon",
    "rich",
    "plotly",
    "jinja2",
]
SKIPPED = {"tests", "test", "testing", "_vendor", "vendor", "_vendored", "third_party", "site-packages", "idlelib", "lib2to3"}
REPETITIVE = re.compile(r"^plotly/|^transformers/models/\w+/(modeling|modular|image_processing|video_processing)_")
"""Files that are generated, or copied from model to model: half of all source, with hardly any new text."""
SHORTEST = 80  # characters; shorter docstrings are labels, not prose
RUN = 5  # words of a run; copies are recognised by their runs

Document = tuple[str, str, str, str]
"""(text, package, module, qualified name)"""


def documents(cache_dir: Path) -> datasets.Dataset:
    """Return the corpus, from the cache if the same packages were read before: columns text, package, module, name."""
    packages = {name: dist.version for name, dist in _closure(ROOTS).items()} | {"python": sys.version.split()[0]}
    identity = xxhash.xxh3_128(f"{FORMAT} {sorted(packages.items())}".encode()).hexdigest()
    file = cache_dir / "builtin" / f"{identity}.parquet"
    if not file.is_file():
        log.info("collecting the built-in corpus from %s installed packages (once; about half a minute)", len(packages))
        columns = zip(*distinct(collect(source_files())), strict=True)
        table = pa.table(dict(zip(("text", "package", "module", "name"), map(list, columns), strict=True)))
        file.parent.mkdir(parents=True, exist_ok=True)
        with write_atomically(file) as partial:
            parquet.write_table(table, partial)
    return datasets.Dataset(parquet.read_table(file, memory_map=True))


def source_files() -> list[tuple[str, str, Path]]:
    """Return (package, module, file) of every Python source of the standard library and of our dependencies, sorted."""
    library = Path(sysconfig.get_paths()["stdlib"])
    library_files = [("python", file.relative_to(library)) for file in library.rglob("*.py")]
    sources = [(package, _module(path), library / path) for package, path in library_files if not SKIPPED & set(path.parts)]
    for name, dist in _closure(ROOTS).items():
        for path in dist.files or []:
            useful = path.suffix == ".py" and len(path.parts) > 1 and not REPETITIVE.match(str(path))
            if useful and not SKIPPED & set(path.parts):
                sources.append((name, _module(Path(path)), Path(str(dist.locate_file(path)))))
    return sorted(sources)


def collect(sources: list[tuple[str, str, Path]]) -> Iterator[Document]:
    """Yield every docstring of the sources, in order. Two processes parse them."""
    with ProcessPoolExecutor(max_workers=min(2, cores())) as pool:
        for file_documents in pool.map(docstrings, sources, chunksize=64):
            yield from file_documents


def docstrings(source: tuple[str, str, Path]) -> list[Document]:
    """Return the docstrings of one file; none if it cannot be parsed."""
    package, module, path = source
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's code
            source_text = path.read_bytes()
            if b'"""' not in source_text and b"'''" not in source_text and module != "pydoc_data.topics":
                return []
            tree = ast.parse(source_text)
    except (SyntaxError, ValueError, OSError, RecursionError):
        return []
    if module == "pydoc_data.topics":
        return [(text, package, module, name) for name, text in _topics(tree)]
    file_documents = []
    for name, node in _walk_docstrings(tree, ""):
        text = inspect.cleandoc(ast.get_docstring(node, clean=False) or "")
        if len(text) >= SHORTEST:
            file_documents.append((text, package, module, name))
    return file_documents


def distinct(documents: Iterable[Document]) -> Iterator[Document]:
    """Yield the documents with at least half of their five-word runs new; digits and the words of the module's name do not count."""
    earlier_runs: set[int] = set()
    for document in documents:
        runs = word_runs(document[0], document[2])
        if len(runs - earlier_runs) * 2 >= len(runs) > 0:
            yield document
        earlier_runs |= runs


def word_runs(text: str, module: str) -> set[int]:
    """Return hashes of the text's five-word runs."""
    module_words = set(re.findall(r"[a-z]+", module.lower()))
    words = [word for word in re.findall(r"[a-z]+", text.lower()) if word not in module_words]
    return {hash(tuple(words[i : i + RUN])) for i in range(len(words) - RUN + 1)}


def _walk_docstrings(
    node: ast.AST, prefix: str
) -> Iterator[tuple[str, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]]:
    if isinstance(node, ast.Module):
        yield "", node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            name = f"{prefix}{child.name}"
            yield name, child
            yield from _walk_docstrings(child, f"{name}.")


def _topics(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Yield (name, text) of each chapter of the language reference, which is a dictionary."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            for name, text in ast.literal_eval(node.value).items():
                yield name, inspect.cleandoc(text)


def _module(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _closure(names: Iterable[str]) -> dict[str, Distribution]:
    """Return the installed distributions among `names` and all that they require, by name."""
    distributions: dict[str, Distribution] = {}
    todo = list(names)
    while todo:
        name = re.sub(r"[-_.]+", "-", todo.pop()).lower()
        if name in distributions:
            continue
        try:
            dist = distribution(name)
        except PackageNotFoundError:
            continue
        distributions[name] = dist
        for requirement in dist.requires or []:
            if "extra ==" not in requirement:
                todo.append(re.match(r"[\w.-]+", requirement).group())  # type: ignore[union-attr]
    return dict(sorted(distributions.items()))
