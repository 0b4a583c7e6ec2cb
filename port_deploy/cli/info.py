# SPDX-License-Identifier: Apache-2.0
"""port-info: what is installed, what is missing, and the command that mends it.

May use: info, files, errors, cli.common. Test: tests/test_info.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from port_deploy.cli.common import Parser, print_json, run, table
from port_deploy.errors import InputError
from port_deploy.files import write_text
from port_deploy.info import bundled_model_facts, collect

if TYPE_CHECKING:
    from argparse import ArgumentParser


MARKERS = ("<!-- models:start -->\n", "<!-- models:end -->")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of port-info."""
    return run(_command, argv)


def parser() -> ArgumentParser:
    """The options."""
    options = Parser(prog="port-info", description="Version, build, backends, GPUs and bundled models.")
    options.add_argument("--json", action="store_true", help="one JSON object instead of text")
    options.add_argument(
        "--markdown",
        nargs="?",
        const="-",
        metavar="README.md",
        help="the table of models alone; with a file, put between its markers",
    )
    return options


def _command(argv: Sequence[str] | None) -> int:
    options = parser().parse_args(argv)
    if options.markdown:
        markdown = models_markdown(bundled_model_facts())
        if options.markdown == "-":
            print(markdown, end="")
        else:
            put_between(Path(options.markdown), *MARKERS, markdown)
        return 0
    facts = collect()
    if options.json:
        print_json(facts)
        return 0
    processor = facts["processor"]
    print(f"port-deploy {facts['version']} · Python {facts['python']} · {facts['system']}")
    print(f"processor: {processor['name']}, {processor['cores']} cores")
    print("GPUs: " + ("; ".join(", ".join(g.values()) for g in facts["gpus"]) or "none (no NVIDIA driver answers)"))
    print("native core: " + _native(facts["native"]))
    print("\nbackends")
    print("\n".join(map(_backend, facts["backends"])) + "\n")
    if facts["models"]:
        print(
            table([_model(m) for m in facts["models"]], ("model", "skeleton", "kind", "size", "parameters", "licence"))
        )
        for model in facts["models"]:
            if figures := headline(model.get("metrics", {})):
                print(f"{model['name']}: {figures}")
    else:
        print("models: none in this installation; port-train makes one")
    print("\nlibraries: " + ", ".join(f"{name} {version}" for name, version in facts["libraries"].items()))
    return 0


def put_between(path: Path, start: str, end: str, text: str) -> None:
    """Replace what stands between two markers of a file.

    Raises:
        InputError: The file cannot be read or does not hold the two markers once each.
    """
    try:
        content = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    if content.count(start) != 1 or content.count(end) != 1:
        raise InputError(f"expected {start.strip()} and {end.strip()} once each in {path}")
    head, rest = content.split(start)
    write_text(path, head + start + text + end + rest.split(end)[1])


def models_markdown(models: Sequence[dict[str, Any]]) -> str:
    """The bundled models as a Markdown table, one line each."""
    lines = ["| model | skeleton | kind | changes | parameters | size | δ | measured | licence of the weights |"]
    lines.append("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for m in (m for m in models if "error" not in m):
        size = f"{m['size_bytes'] / 1e6:.1f} MB"
        name = f"[`{m['name']}`]({m['card']})" if m["card"] else f"`{m['name']}`"
        changes = "every joint" if m["refine"] == "all" else "joints below δ"
        changes += f", {m['fusion']:g} of the way" if m["fusion"] < 1 else ""
        cells = (name, f"`{m['skeleton']}`", f"`{m['kind']}`", changes, f"{m['parameters']:,}", size)
        tail = (f"{m['threshold']:g}", headline(m["metrics"]) or "–", m["licence"])
        lines.append("| " + " | ".join((*cells, *tail)) + " |")
    return "\n".join(lines) + "\n"


def headline(metrics: Any) -> str:
    """A model's metrics on one line: the mean over its held-out sources, then every other number that it holds."""
    parts: list[str] = []
    others = {k: v for k, v in metrics.items() if k not in ("calibrations", "held_out_variance")}
    sources = list(others.pop("held_out", {}).get("sources", {}).values())
    if sources:
        after, before = (sum(s[name] for s in sources) / len(sources) for name in ("error_masked", "detector_masked"))
        parts.append(
            f"hidden joints {after:.0f} % of the pose's size off, simulated detector {before:.0f} % (held-out)"
        )

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(f"{prefix} {key}".strip(), inner)
        elif isinstance(value, (int, float, str)) and not isinstance(value, bool):
            parts.append(f"{prefix} {value:.4g}" if isinstance(value, float) else f"{prefix} {value}")

    walk("", others)
    return ", ".join(parts[:12])


def _native(native: dict[str, Any]) -> str:
    if "error" in native:
        return str(native["error"])
    text = f"{native['selected_isa']} (built for {', '.join(native['compiled_isas'])}; here: "
    text += f"{', '.join(native['available_isas'])}), bf16 {'yes' if native['bf16'] else 'no'}, {native['compiler']}"
    return f"{text}\nCUDA: {native['cuda_info']['detail']}"


def _backend(backend: dict[str, Any]) -> str:
    line = f"  {backend['name']:<13} {'yes' if backend['available'] else 'no ':<4} {backend['detail']}"
    return line + (f"\n{'→ ':>22}{backend['remedy']}" if backend["remedy"] else "")


def _model(model: dict[str, Any]) -> tuple[str, ...]:
    if "error" in model:
        return model["name"], "–", "–", "–", "–", model["error"]
    size = f"{model['size_bytes'] / 1e6:.2f} MB"
    return model["name"], model["skeleton"], model["kind"], size, f"{model['parameters']:,}", model["licence"]
