"""Compile the modules that pyproject.toml lists under [tool.qnetpy.compiled] with mypyc, into build/compiled. Run by `make compile`.

One shared library holds the code of all of them, so that calls between them stay within it; beside it, one small extension per module,
which is what `import` finds (`resmgr.compiled`). Last comes manifest.json, which says of which sources they were made: a build that was
broken off has none. A build that fits is left alone. Takes minutes; the errors of mypyc and of the compiler are shown as they are.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import os
import re
import shutil
import sys
import sysconfig
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = Path("build", "compiled")
WORK = Path("build", "compiled.work")
COLD = Path(".ci", "cold.h")
SHARED = "qnetpy__mypyc"
"""The library: a top-level module, whose name mypyc makes of its group's."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="make compile", description="compile the hot modules")
    parser.add_argument("--optimise", default="2", metavar="LEVEL", help="the compiler's -O")
    parser.add_argument("--force", action="store_true", help="even when there is a build that fits")
    parser.add_argument("--verbose", action="store_true", help="show the commands")
    args = parser.parse_args()
    os.chdir(ROOT)
    modules: list[str] = tomllib.loads(Path("pyproject.toml").read_text())["tool"]["qnetpy"]["compiled"]["modules"]
    if not args.force and fits(modules):
        print(f"compile: {len(modules)} modules are compiled already")
        return 0
    shutil.rmtree(BUILD, ignore_errors=True)
    # Before the build: a source that is changed meanwhile then does not fit.
    facts = [fact(source) for source in sorted(closure(modules))]
    reused = [place for module in modules for place in reused_names(source_of(module))]
    if reused:
        print("compile: one name for exceptions of two types in a function is a TypeError in compiled code:", file=sys.stderr)
        print("\n".join(reused), file=sys.stderr)
        return 1
    narrowed = [place for module in modules for place in narrowed_to_none(source_of(module))]
    if narrowed:
        print("compile: set to None, then read after a call that may have set it, is a TypeError in compiled code:", file=sys.stderr)
        print("\n".join(narrowed), file=sys.stderr)
        return 1
    build(modules, args.optimise, args.verbose)
    compared = list(identities(modules))
    if compared:
        print("compile: == of attrs values becomes identity in compiled code; compare their fields (as Target.same does):", file=sys.stderr)
        print("\n".join(compared), file=sys.stderr)
        return 1
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    files = {module: str(Path(*module.split("."))) + suffix for module in modules} | {SHARED: SHARED + suffix}
    missing = [name for name in files.values() if not (BUILD / name).is_file()]
    if missing:
        print(f"compile: not built: {', '.join(missing)}", file=sys.stderr)
        return 1
    manifest = {"python": sys.version, "shared": SHARED, "files": files, "sources": facts}
    (BUILD / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    print(f"compile: {len(modules)} modules are compiled")
    return 0


def fits(modules: list[str]) -> bool:
    """Whether the build that is there holds just *modules*, of the sources as they are."""
    os.environ["QNETPY_COMPILED"] = "off"
    from resmgr import compiled

    try:
        return set(compiled.load(str(ROOT), str(ROOT / BUILD)).names()) == set(modules)
    except (OSError, compiled.Unfit):
        return False


def source_of(module: str) -> Path:
    return Path(*module.split(".")).with_suffix(".py")


def closure(modules: list[str]) -> set[Path]:
    """The sources of *modules* and of all of ours that they import, at any depth: constants of those are built in as well."""
    found: set[Path] = set()
    waiting = [source_of(module) for module in modules]
    while waiting:
        source = waiting.pop()
        if source in found or not source.is_file():
            continue
        found.add(source)
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.Import):
                waiting += [source_of(alias.name) for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                package = Path(*node.module.split("."), "__init__.py")
                waiting += [source_of(node.module), package, *(source_of(f"{node.module}.{alias.name}") for alias in node.names)]
    return found


def fact(source: Path) -> list[object]:
    """Path, size, time and digest, as the manifest has them."""
    status = source.stat()
    return [str(source), status.st_size, status.st_mtime_ns, hashlib.sha256(source.read_bytes()).hexdigest()]


def reused_names(source: Path) -> Iterator[str]:
    """`except A as error` and `except B as error` in one function: mypyc gives the variable the first one's type."""
    for function in ast.walk(ast.parse(source.read_text())):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            kinds: dict[str, str] = {}
            for handler in ast.walk(function):
                if isinstance(handler, ast.ExceptHandler) and handler.name and handler.type:
                    kind = ast.unparse(handler.type)
                    if kinds.setdefault(handler.name, kind) != kind:
                        yield f"  {source}:{handler.lineno}: {function.name}: {handler.name}"


def narrowed_to_none(source: Path) -> Iterator[str]:
    """`self.timer = None`, a call, and a look at `self.timer` in one function: to mypy it is still None, and mypyc checks that it is. In a
    loop that sets it again mypy sees both."""
    for function in ast.walk(ast.parse(source.read_text())):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            for place, line in _after_calls(function.body, {}):
                yield f"  {source}:{line}: {function.name}: {place}"


def _after_calls(statements: list[ast.stmt], none: dict[str, bool]) -> Iterator[tuple[str, int]]:
    """*none*: what was set to None, and whether something was called since; changed on the way."""
    for statement in statements:
        bodies = [body for name in ("body", "orelse", "finalbody") if (body := getattr(statement, name, None))]
        looping = isinstance(statement, ast.For | ast.While)
        own = [child for child in ast.iter_child_nodes(statement) if not isinstance(child, ast.stmt | ast.ExceptHandler)]
        for node in (node for child in own for node in ast.walk(child)):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load) and none.get(ast.unparse(node)):
                yield ast.unparse(node), node.lineno
        if any(isinstance(node, ast.Call) for child in own for node in ast.walk(child)):
            none |= dict.fromkeys(none, True)
        if isinstance(statement, ast.Assign | ast.AnnAssign):
            for target in statement.targets if isinstance(statement, ast.Assign) else [statement.target]:
                for node in ast.walk(target):
                    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                        none.pop(ast.unparse(node), None)
                        if isinstance(statement.value, ast.Constant) and statement.value.value is None:
                            none[ast.unparse(node)] = False
        for body in bodies:
            again = {
                ast.unparse(node)
                for child in body
                for node in ast.walk(child)
                if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
            }
            inner = {place: called for place, called in none.items() if not (looping and place in again)}
            yield from _after_calls(body, inner)
            if any(isinstance(node, ast.Call) for child in body for node in ast.walk(child)):
                none |= dict.fromkeys(none, True)
            for place in again:
                none.pop(place, None)


def identities(modules: list[str]) -> Iterator[str]:
    """Functions that compare two values of an attrs class with `==`: mypyc does not see the `__eq__` that attrs makes.

    Read from the intermediate code that mypyc leaves in ops.txt: `name :: type` of each register, then lines like `r1 = r2 == r3`.
    """
    values: set[str] = set()
    for module in modules:
        for node in ast.walk(ast.parse(source_of(module).read_text())):
            made = [ast.unparse(decorator) for decorator in node.decorator_list] if isinstance(node, ast.ClassDef) else []
            if any(text.startswith("attrs.") and "eq=False" not in text for text in made):
                values.add(f"{module}.{node.name}")
    function, types = "", dict[str, str]()
    for line in (WORK / "c" / "ops.txt").read_text().splitlines():
        if line.startswith("def "):
            function, types = line[4:], {}
        elif found := re.fullmatch(r"\s+([\w, ]+) :: (\S+)", line):
            types |= dict.fromkeys(found[1].split(", "), found[2])
        elif (found := re.search(r" = (\w+) [!=]= (\w+)$", line)) and {types.get(found[1]), types.get(found[2])} & values:
            yield f"  {function}  {types.get(found[1])}"


def build(modules: list[str], level: str, verbose: bool) -> None:
    # mypyc adjusts setuptools' compiler, so it comes first.
    from mypyc.build import mypycify  # isort: skip
    from setuptools import Distribution
    from setuptools.command.build_ext import build_ext

    class Build(build_ext):
        def build_extensions(self) -> None:
            """Compile the sources of an extension side by side; setuptools does so only with whole extensions."""
            compile_some = self.compiler.compile

            def compile_all(sources: list[str], *args: object, **kwargs: object) -> list[str]:
                with ThreadPoolExecutor(os.cpu_count()) as pool:
                    objects = pool.map(lambda source: compile_some([source], *args, **kwargs), sources)
                    return [name for names in objects for name in names]

            self.compiler.compile = compile_all
            super().build_extensions()

    sources = [str(source_of(module)) for module in modules]
    extensions = mypycify(
        sources,
        opt_level=level,
        # What a debugger needs is a tenth of the work, and nobody debugs a build that is made to run tests once.
        debug_level="1" if level >= "2" else "0",
        group_name=SHARED.removesuffix("__mypyc"),
        multi_file=True,
        target_dir=str(WORK / "c"),
        verbose=verbose,
    )
    for extension in extensions:
        extension.extra_compile_args += ["-include", str(COLD)]
    command = Build(Distribution({"name": "qnetpy", "ext_modules": extensions}))
    command.build_lib = str(BUILD)
    command.build_temp = str(WORK / "o")
    command.ensure_finalized()
    command.run()


if __name__ == "__main__":
    sys.exit(main())
