"""What a model must beat before it answers, and a page that shows how it did."""

import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from rayrec.evaluation.metrics import bootstrap_ci
from rayrec.evaluation.protocol import Judged

_ROUNDING = 1e-9  # of a share that is exactly what is allowed


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


@dataclass(frozen=True)
class Forgetting:
    """On what was known before: both means, and the share of the present model's that is lost; its 95 % interval."""

    mean: float
    opponents: float
    lost: float
    ci95: tuple[float, float]
    allowed: float


@dataclass(frozen=True)
class UpdateVerdict:
    """promoted: every gain on the new slice is clear of zero, and no more than allowed is lost on the old one."""

    metric: str
    promoted: bool
    gains: tuple[Gain, ...]
    forgetting: Forgetting

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def reason(self) -> str:
        """Why it is promoted or not, in a line."""
        lost, allowed = self.forgetting.lost, self.forgetting.allowed
        said = [
            f"no gain on new events clear of zero: {g.gain:+.5f} [{g.ci95[0]:+.5f}, {g.ci95[1]:+.5f}]"
            for g in self.gains
            if g.ci95[0] <= 0
        ]
        if lost > allowed + _ROUNDING:
            said.append(f"forgets {lost:.1%} of {self.metric} on old events, {allowed:.1%} are allowed")
        return "; ".join(said) or "better on new events, and nothing forgotten"


def gate_update(
    metric: str, new: tuple[np.ndarray, np.ndarray], old: tuple[np.ndarray, np.ndarray], max_forgetting: float
) -> UpdateVerdict:
    """Judge an updated model against the present one on new and on old held-out cases, (ours, theirs) of each.

    On the new ones as `gate` does. On the old ones the point estimate decides, as the interval of a few hundred
    shoppers is wider than any sensible limit; it is told beside it.
    """
    first = gate(metric, new[0], {"present model": new[1]})
    ours, theirs = float(old[0].mean()), float(old[1].mean())
    share = 1 / theirs if theirs > 0 else 0.0
    low, high = bootstrap_ci(old[1] - old[0])
    lost = (theirs - ours) * share
    forgetting = Forgetting(
        round(ours, 5),
        round(theirs, 5),
        round(lost, 5),
        (round(low * share, 5), round(high * share, 5)),
        max_forgetting,
    )
    return UpdateVerdict(metric, first.promoted and lost <= max_forgetting + _ROUNDING, first.gains, forgetting)


def document_of(parts: Mapping[str, Mapping[str, Judged]], metric: str) -> dict[str, Any]:
    """One document of several sets of cases; slices are named `new events`, `new events: cold items` and so on."""
    models: dict[str, Any] = {}
    for part, judged in parts.items():
        for name, of_model in document(judged, metric)["models"].items():
            slices = {part if where == "all" else f"{part}: {where}": values for where, values in of_model.items()}
            models.setdefault(name, {}).update(slices)
    return {"metric": metric, "models": models}


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
        if "forgetting" in verdict:
            parts.append(_forgetting(verdict["forgetting"]))
    parts.append(_bars(models, wheres, metric))
    curve = [name for name in next(iter(models.values()))[wheres[0]] if name.startswith("recall@") and "_" not in name]
    if len(curve) > 1:
        parts.append(_curves(models, curve, wheres[0]))
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


def _forgetting(said: Mapping[str, Any]) -> str:
    low, high = said["ci95"]
    lost = f"{said['lost']:.2%} ({low:.2%} to {high:.2%})"
    text = (
        "<p>On held-out cases of before it may lose no more than a share of what the present model reaches there.</p>"
    )
    row = [said["mean"], said["opponents"], lost, f"{said['allowed']:.2%}"]
    return text + _table(["model", "present model", "lost (95 % interval)", "allowed"], [row])


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


def _curves(models: Mapping[str, Any], curve: Sequence[str], where: str) -> str:
    """Recall over the length of the list, on one slice."""
    figure, axes = _figure(6, 3.5)
    cuts = [int(name.partition("@")[2]) for name in curve]
    for name, of_model in models.items():
        axes.plot(cuts, [of_model[where][key] for key in curve], marker="o", label=name)
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
