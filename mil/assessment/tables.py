"""A report as text: a line a slide for a spreadsheet, and a line a figure for a terminal."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mil.assessment.findings import Finding
from mil.evaluation.metrics import DEFINITIONS

SHOWN = tuple(DEFINITIONS)
"""Figures that a terminal shows, in this order; those of single classes follow."""


def slides_csv(findings: Sequence[Finding]) -> bytes:
    """A line a slide of every cohort: its truth, what the model says of it, and what the gate makes of that.

    Blank is unknown. Sets and reasons are joined by ``;``.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    classes = findings[0].cohort.after.classes
    writer.writerow(
        [
            *("cohort", "slide_id", "patient", "label", "predicted", "judged_by"),
            *(f"probability: {name}" for name in classes),
            *(f"before calibration: {name}" for name in classes),
            *("confidence", "ensemble_deviation", "mutual_information", "mc_dropout_deviation"),
            *("conformal_set", "class_conditional_set", "decision", "reasons"),
        ]
    )
    for finding in findings:
        writer.writerows(_slides(finding))
    return text.getvalue().encode()


def _slides(finding: Finding) -> Iterator[list[str]]:
    cohort, after = finding.cohort, finding.cohort.after
    for row, decision in enumerate(finding.decisions):
        spread = cohort.spread
        member = cohort.member_of_slide
        yield [
            cohort.name,
            after.slide_ids[row],
            after.patients[row],
            after.classes[after.labels[row]],
            after.classes[after.predicted[row]],
            "all members" if member is None else f"member {member[row]}",
            *map(repr, after.probabilities[row].tolist()),
            *map(repr, cohort.before.probabilities[row].tolist()),
            repr(decision.confidence),
            "" if spread is None else repr(float(spread.deviation[row])),
            "" if spread is None else repr(float(spread.information[row])),
            "" if cohort.dropout_deviation is None else repr(float(cohort.dropout_deviation[row])),
            *(
                "; ".join(name for name, inside in zip(after.classes, sets[row], strict=True) if inside)
                for sets in (cohort.sets, cohort.class_sets)
            ),
            decision.status,
            "; ".join(decision.reasons),
        ]


def summary(name: str, content: Mapping[str, Any]) -> dict[str, str]:
    """What a terminal shows of a cohort: names in full words, and no figure without its n."""
    counts = content["slides"]
    n = _n(counts["all"])
    lines = {name: n}
    lines |= {f"  class {label}": _n(found) for label, found in counts.items() if label != "all"}
    each = content["figures"]
    names = full_names(len(counts) - 1)
    lines |= {names[figure]: f"{_figure(each[figure])}  [{n}]" for figure in SHOWN}
    error = content["calibration"]["after"]
    null = (
        f"{error['null_mean']:.3f} (95 % of such models {error['null_low']:.3f} to {error['null_high']:.3f})"
    )
    lines["  of a perfectly calibrated model"] = f"{null}  [{n}]"
    lines |= {name: f"{_figure(found)}  [{n}]" for name, found in each.items() if name not in SHOWN}
    before = content["figures_before_calibration"]
    for figure in ("Brier score", "negative log-likelihood", "expected calibration error"):
        lines[f"{figure} before calibration"] = f"{_figure(before[figure])}  [{n}]"
    for label, found in content["delong"].items():
        lines[f"AUROC by DeLong, {label} against the rest"] = f"{_delong(found)}  [{n}]"
    if content["figures_by_patient"]:
        grouped = content["figures_by_patient"]
        cases = f"{grouped['cases']} patients, a case a label"
        for figure in SHOWN:
            lines[f"{names[figure]}, by patient"] = f"{_figure(grouped[figure])}  [{cases}]"
    return lines | _trust(content, n) | _folds(content)


def _trust(content: Mapping[str, Any], n: str) -> dict[str, str]:
    """Sets and the gate."""
    sets, gate = content["conformal"], content["gate"]
    lines = {}
    for kind, words in (("marginal", "conformal sets"), ("class_conditional", "class-conditional sets")):
        found = sets[kind]
        lines[f"{words}: hold the truth"] = (
            f"{share_text(found['coverage'])}; {100 * found['wanted']:g} % wanted"
        )
        empty, one, *more = found["slides_by_size"].values()
        sizes = f"{one} slides with one class, {sum(more)} with more, {empty} with none"
        lines[f"{words}: how large"] = f"{sizes}; mean {found['mean_size']:.2f}  [{n}]"
    lines["confirmed by the gate"] = share_text(gate["confirmed"])
    lines["accuracy of the confirmed"] = share_text(gate["accuracy_of_confirmed"])
    lines["accuracy of those for review"] = share_text(gate["accuracy_of_review"])
    area, error = gate["area_under_risk_coverage"], gate["error_without_gate"]
    lines["area under the risk-coverage curve"] = (
        f"{area:.3f}; {error:.3f} if confidence were of no use  [{n}]"
    )
    for kind, words in (("ensemble", "ensemble"), ("mc_dropout", "dropout")):
        found = content["uncertainty"][kind]
        if found is None:
            lines[f"spread of the {words}"] = "n/a: " + (
                "each slide was judged by one member" if kind == "ensemble" else "needs features, give OUT"
            )
            continue
        right, wrong = found["deviation"]["right"], found["deviation"]["wrong"]
        lines[f"spread of the {words}"] = f"{_mean(right)} where right, {_mean(wrong)} where wrong"
    return lines


def _folds(content: Mapping[str, Any]) -> dict[str, str]:
    folds = content["folds"]
    if folds is None:
        return {}
    lines = {}
    for figure, found in folds["over_folds"].items():
        if found["mean"] is None:
            lines[f"{figure}, mean over folds"] = "n/a: not defined in any fold"
            continue
        deviation = "" if found["deviation"] is None else f", standard deviation {found['deviation']:.3f}"
        lines[f"{figure}, mean over folds"] = f"{found['mean']:.3f}{deviation}  [{found['folds']} folds]"
    lines["  of folds"] = "they share training slides: the deviation is no standard error"
    return lines


def blocks(content: Mapping[str, Any]) -> list[dict[str, str]]:
    """All that a terminal shows of a report, in paragraphs."""
    shown = [summary(name, found) for name, found in content["cohorts"].items()]
    if content["against"]:
        other = content["against"]["model"]["name"]
        cohorts = content["against"]["cohorts"].items()
        shown += [comparison_summary(name, found, other) for name, found in cohorts]
    if content["explanations"]:
        shown.append(explanation_summary(content["explanations"]))
    fits = content["calibration"]["members"]
    shown.append({f"temperature of member {fit['member']}": _temperature(fit) for fit in fits})
    shown.append({f"note {number}": text for number, text in enumerate(content["cautions"], start=1)})
    return shown


def explanation_summary(told: Mapping[str, Any]) -> dict[str, str]:
    """What the terminal shows of explanations: how true each method is, by the area between its curves."""
    lines = {"explanations": f"{told['cohort']}, each explained by {told['judged_by']}; {told['scope']}"}
    for name, found in sorted(told["methods"].items(), key=lambda pair: -pair[1]["gain"]["mean"]):
        gain = found["gain"]
        ends = None if gain["low"] is None else (gain["low"], gain["high"])
        lines[f"  area between curves, {name}"] = f"{_value(gain['mean'], ends)}  [{gain['slides']} slides]"
    return lines | {"  how true to the model": told["verdict"]}


def comparison_summary(cohort: str, content: Mapping[str, Any], other: str) -> dict[str, str]:
    """What a terminal shows of the comparison with another model."""
    n, names = _n(content["slides"]["all"]), full_names(len(content["slides"]) - 1)
    lines = {f"against {other}": f"{other} minus this one; {cohort} that both judged: {n}"}
    for label, found in content["delong"].items():
        key = f"difference of AUROC by DeLong, {label} against the rest"
        if found["difference"] is None:
            lines[key] = f"n/a: {found['note']}"
            continue
        p = "p n/a" if found["p"] is None else f"p {found['p']:.3g}"
        ends = None if found["low"] is None else [found["low"], found["high"]]
        lines[key] = f"{_value(found['difference'], ends, signed=True)}, {p}{_note(found)}  [{n}]"
    for figure in SHOWN:
        lines[f"difference of {names[figure]}"] = (
            f"{_figure(content['differences'][figure], signed=True)}  [{n}]"
        )
    return lines


def full_names(classes: int) -> dict[str, str]:
    """What a terminal calls the figures of all classes: those that are means over them say so."""
    means = {"AUPRC", "F1"} | ({"AUROC"} if classes > 2 else set())
    return {figure: f"{figure}, mean over classes" if figure in means else figure for figure in SHOWN}


def share_text(found: Mapping[str, Any]) -> str:
    """A share as ``0.900 (95 % interval 0.800 to 0.950), 45 of 50``."""
    if found["value"] is None:
        return "n/a: no such slides"
    return f"{_value(found['value'], found['interval'])}, {found['count']} of {found['of']} slides"


def _figure(found: Mapping[str, Any], *, signed: bool = False) -> str:
    if found["value"] is None:
        return f"n/a: {found['note']}"
    left_out = found["undefined_resamples"]
    more = f"; {left_out} resamples lacked a class" if left_out else ""
    return _value(found["value"], found["interval"], signed=signed) + more + _note(found)


def _delong(found: Mapping[str, Any]) -> str:
    if found["AUROC"] is None:
        return f"n/a: {found['note']}"
    return _value(found["AUROC"], found["interval"]) + _note(found)


def _value(value: float, ends: Sequence[float] | None, *, signed: bool = False) -> str:
    sign = "+" if signed else ""
    shown = f"{value:{sign}.3f}"
    return shown if ends is None else f"{shown} (95 % interval {ends[0]:{sign}.3f} to {ends[1]:{sign}.3f})"


def _note(found: Mapping[str, Any]) -> str:
    return f"; {found['note']}" if found["note"] else ""


def _mean(found: Mapping[str, Any]) -> str:
    return "n/a (no slides)" if found["mean"] is None else f"{found['mean']:.3f} ({found['slides']} slides)"


def _temperature(fit: Mapping[str, Any]) -> str:
    why = f"; {fit['temperature_note']}" if fit["temperature_note"] else ""
    return f"{fit['temperature']:.3f}{why}  [{_n(fit['validation'])} of validation]"


def _n(found: Mapping[str, int]) -> str:
    return f"{found['slides']} slides, {found['patients']} patients"
