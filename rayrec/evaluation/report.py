"""What a model must beat before it answers, and a page that shows how it did."""

import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from rayrec.evaluation.metrics import bootstrap_ci
from rayrec.evaluation.protocol import Judged


@dataclass(frozen=True)
class Gain:
    """Over one opponent: both means, and the paired difference with its 95 % interval."""

    opponent: str
    mean: float
    opponents: float
    gain: float
    ci95: tuple[float, float]


@dataclass(frozen=True)
class Verdict:
    """promoted: every gain is clear of zero."""

    metric: str
    promoted: bool
    gains: tuple[Gain, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def gate(metric: str, values: np.ndarray, opponents: Mapping[str, np.ndarray]) -> Verdict:
    """Judge a model on held-out cases: values float (C,), and those of each opponent on the same cases.

    Do no harm: it is promoted if it beats every opponent with the 95 % interval of the paired difference above zero.
    """
    gains = []
    for name, theirs in opponents.items():
        low, high = bootstrap_ci(values - theirs)
        means = float(values.mean()), float(theirs.mean())
        gains.append(
            Gain(
                name,
                round(means[0], 5),
                round(means[1], 5),
                round(means[0] - means[1], 5),
                (round(low, 5), round(high, 5)),
            )
        )
    return Verdict(metric, bool(gains) and all(gain.ci95[0] > 0 for gain in gains), tuple(gains))


def document(judged: Mapping[str, Judged], metric: str) -> dict[str, Any]:
    """report.json: for each model, figures of every slice, and the metric's interval."""
    models = {}
    for name, one in judged.items():
        there = [where for where, inside in one.slices.items() if inside.any()]
        models[name] = {
            where: {
                "cases": int(one.slices[where].sum()),
                f"{metric}_ci95": [round(v, 5) for v in one.ci95(metric, where)],
                **{key: round(value, 5) for key, value in one.figures(where).items()},
            }
            for where in there
        }
    return {"metric": metric, "models": models}


def page(title: str, report: Mapping[str, Any], verdict: Mapping[str, Any] | None = None) -> str:
    """A page of its own from report.json's content: plots, a table per slice, and what the gate said."""
    metric, models = report["metric"], report["models"]
    wheres = list(dict.fromkeys(where for of_model in models.values() for where in of_model))
    parts = [f"<h1>{html.escape(title)}</h1>"]
    if verdict is not None:
        said = "promoted" if verdict["promoted"] else "not promoted"
        rows = [
            [g["opponent"], g["mean"], g["opponents"], g["gain"], f"{g['ci95'][0]} to {g['ci95'][1]}"]
            for g in verdict["gains"]
        ]
        parts += [
            f"<h2>Gate: {said}</h2><p>It must beat each on held-out {html.escape(metric)}, clear of zero.</p>",
            _table(["against", "model", "opponent", "gain", "95 % interval"], rows),
        ]
    parts.append(_bars(models, wheres, metric))
    curve = [name for name in next(iter(models.values()))["all"] if name.startswith("recall@") and "_" not in name]
    if len(curve) > 1:
        parts.append(_curves(models, curve))
    for where in wheres:
        names = [name for name in models if where in models[name]]
        columns = [key for key in models[names[0]][where] if not key.endswith("_ci95")]
        rows = [[name, *(models[name][where].get(column, "") for column in columns)] for name in names]
        parts += [f"<h2>{html.escape(where.capitalize())}</h2>", _table(["model", *columns], rows)]
    head = f"<meta charset=utf-8><title>{html.escape(title)}</title>{_STYLE}"
    return f"<!doctype html><html lang=en>{head}{''.join(parts)}</html>"


_STYLE = """<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
div { overflow-x: auto; } svg { max-width: 100%; height: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .75rem; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child, td:first-child { text-align: left; }
</style>"""


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<div><table><tr>{head}</tr>{body}</table></div>"


def _bars(models: Mapping[str, Any], wheres: Sequence[str], metric: str) -> str:
    """The metric of each model on each slice, with intervals."""
    figure, axes = _figure(9, 3.5)
    width = 0.8 / len(models)
    for number, (name, of_model) in enumerate(models.items()):
        there = [place for place, where in enumerate(wheres) if where in of_model]
        means = np.array([of_model[wheres[place]][metric] for place in there])
        ends = np.array([of_model[wheres[place]][f"{metric}_ci95"] for place in there])
        reach = np.abs(ends.T - means)
        axes.bar(np.array(there) + number * width, means, width, yerr=reach, capsize=2, label=name)
    axes.set_xticks(np.arange(len(wheres)) + 0.4 - width / 2, wheres)
    axes.set_ylabel(metric)
    axes.legend(frameon=False)
    return _svg(figure)


def _curves(models: Mapping[str, Any], curve: Sequence[str]) -> str:
    """Recall over the length of the list."""
    figure, axes = _figure(6, 3.5)
    cuts = [int(name.partition("@")[2]) for name in curve]
    for name, of_model in models.items():
        axes.plot(cuts, [of_model["all"][key] for key in curve], marker="o", label=name)
    axes.set_xlabel("items shown")
    axes.set_ylabel("recall")
    axes.legend(frameon=False)
    return _svg(figure)


def _figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure((width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _svg(figure: Any) -> str:
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    return f"<div>{out.getvalue().partition('?>')[2].partition('>')[2]}</div>"
