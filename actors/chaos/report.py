"""The report on a run: one HTML file that needs no network and no script."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from .picture import COLOURS, KIND_WORDS, Curve, draw, rates
from .play import Outcome
from .slots import FAULT_KINDS

ANOMALIES_SHOWN_MAX = 200
FAULTS_SHOWN_MAX = 2_000
GROUPS_DRAWN_MAX = 6

STYLE = """
:root { color-scheme: light; --ink: #1c2430; --soft: #5b6675; --rule: #d8dee6; --paper: #fff;
  --good: #0b6e4f; --bad: #b3261e; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 1080px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin: 0 0 .2rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
.soft, td.soft { color: var(--soft); } code, pre { font: 13px/1.45 ui-monospace, monospace; }
.verdict { border-left: 6px solid; padding: .7rem 1rem; margin: 1.2rem 0; font-size: 1.1rem; }
.verdict.ok { border-color: var(--good); background: #eaf6f1; }
.verdict.failed { border-color: var(--bad); background: #fceceb; }
table { border-collapse: collapse; margin: .4rem 0 1rem; }
th, td { text-align: right; padding: .22rem .9rem .22rem 0; border-bottom: 1px solid var(--rule);
  font-variant-numeric: tabular-nums; }
th { font-weight: 600; color: var(--soft); } th:first-child, td:first-child, td.text, th.text {
  text-align: left; }
details { margin: .6rem 0; } summary { cursor: pointer; }
.anomaly { border: 1px solid var(--rule); border-left: 4px solid var(--bad); padding: .5rem .9rem;
  margin: .7rem 0; overflow-wrap: anywhere; } .anomaly pre { white-space: pre-wrap; margin: .4rem 0; }
svg { width: 100%; height: auto; } svg text { font: 12px system-ui, sans-serif; fill: #3c4654; }
svg text.title { font-weight: 600; fill: #1c2430; } svg .grid { stroke: #e4e8ee; }
svg .lane { stroke: #cdd5de; } svg .curve { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
svg .healed { fill: #eef7f2; }
svg .kill path { stroke: #c8102e; stroke-width: 2.2; fill: none; }
svg .crash path { fill: #7a1fa2; } svg .pause rect { fill: #e69f00; fill-opacity: .85; }
svg .takeover rect { fill: #4477aa; fill-opacity: .45; stroke: #2c5480; }
svg .fenced circle { fill: #fff; stroke: #0b6e4f; stroke-width: 2; }
"""


def render(outcome: Outcome) -> str:
    plan = outcome.plan
    title = f"Chaos: {plan.application}, seed {plan.seed}"
    now = dt.datetime.now(dt.UTC).isoformat(sep=" ", timespec="seconds")
    parts = [
        "<!doctype html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>',
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head><body>',
        f"<h1>{escape(title)}</h1>",
        (
            f'<div class="soft">{now} · input {escape(plan.source.job.path)} · topic '
            f"{escape(plan.topic)} · {outcome.played_s:.1f} s</div>"
        ),
        *_verdict(outcome),
        "<h2>What happened when</h2>",
        picture(outcome),
        *_anomalies(outcome),
        "<h2>What was done</h2>",
        *_deeds(outcome),
        "<h2>What became of the messages</h2>",
        *_messages(outcome),
        *_checks(outcome),
        *_all_faults(outcome),
        "</body></html>",
    ]
    return "\n".join(parts) + "\n"


def picture(outcome: Outcome) -> str:
    watch, topic = outcome.watch, outcome.plan.topic
    bins = max(watch.bins, int(outcome.played_s) + 1)
    groups = sorted({(its.group, its.topic) for its in outcome.plan.consumers})
    groups.sort(key=lambda place: place[1] != topic)  # those that read the input come first
    accepted = rates(watch.accepted_series(topic, bins))
    throughput, lag = [Curve(f"accepted in {topic}", accepted, COLOURS[0])], []
    for (group, name), colour in zip(groups, COLOURS[1 : 1 + GROUPS_DRAWN_MAX], strict=False):
        done = watch.processed_series(group, name, bins)
        stored = watch.accepted_series(name, bins)
        throughput.append(Curve(f"processed by {group}", rates(done), colour))
        behind = [float(max(0, end - at)) for end, at in zip(stored, done, strict=False)]
        lag.append(Curve(f"{group} behind {name}", behind, colour))
    return draw(
        seconds=outcome.played_s,
        healed_s=outcome.faults_over_s,
        throughput=throughput,
        lag=lag,
        lanes=outcome.lanes,
        faults=outcome.faults,
    )


def _verdict(outcome: Outcome) -> Iterable[str]:
    verdict = outcome.verdict
    kills = outcome.deeds.kills.total()
    suppressed = outcome.watch.duplicates + outcome.watch.skipped
    if verdict.ok:
        text = (
            f"<b>Passed.</b> {outcome.fed:,} rows were fed while {kills:,} processes were killed; "
            f"{suppressed:,} duplicates were suppressed. Nothing was lost, nothing doubled."
        )
    else:
        total = verdict.anomalies_total
        what = "1 anomaly" if total == 1 else f"{total:,} anomalies"
        text = f"<b>Failed:</b> {what}, listed below."
    yield f'<div class="verdict {"ok" if verdict.ok else "failed"}">{text}</div>'
    for note in verdict.notes:
        yield f'<div class="soft">Note: {escape(note)}</div>'


def _table(head: Sequence[str], rows: Iterable[Sequence[object]], *, texts: int = 1) -> str:
    """Return a table; the first `texts` columns are text, the others numbers."""

    def cells(tag: str, row: Sequence[object]) -> str:
        shown = (f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row)
        return "".join(
            f'<{tag} class="text">{escape(cell)}</{tag}>'
            if number < texts
            else f"<{tag}>{escape(cell)}</{tag}>"
            for number, cell in enumerate(shown)
        )

    body = "\n".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f"<table><tr>{cells('th', head)}</tr>\n{body}</table>"


def _deeds(outcome: Outcome) -> Iterable[str]:
    deeds = outcome.deeds
    roles = outcome.plan.roles
    columns = (deeds.kills, deeds.at_work, deeds.pauses, deeds.takeovers, deeds.fenced)
    head = ("role", "killed", "of them at work", "paused", "replaced while frozen", "fenced then")
    rows: list[tuple[object, ...]] = [(role, *(its[role] for its in columns)) for role in roles]
    rows.append(("all", *(sum(its[role] for role in roles) for its in columns)))
    yield _table(head, rows)
    if deeds.crashes:
        crashes = ", ".join(f"{name} {count}" for name, count in sorted(deeds.crashes.items()))
        yield f'<p class="soft">Of the killed, at crash points: {escape(crashes)}.</p>'
    yield (
        f'<p class="soft">{outcome.processes:,} processes were started. When faults ended, the '
        f"input was being fed for the {_ordinal(outcome.rounds)} time.</p>"
    )


def _ordinal(number: int) -> str:
    ending = {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{'th' if number % 100 in {11, 12, 13} else ending}"


def _messages(outcome: Outcome) -> Iterable[str]:
    report = outcome.verdict.report
    if report is None:
        yield "<p>The files could not be read: see the anomalies.</p>"
        return
    rows: list[tuple[object, ...]] = []
    for name, topic in report.topics.items():
        for group, row in (topic["groups"] or {"–": {}}).items():
            counts = [row.get(key, 0) for key in ("processed", "pending", "parked", "skipped")]
            rows.append((name, group, topic["accepted"], *counts))
    head = ("topic", "group", "accepted", "processed", "pending", "parked", "skipped")
    yield _table(head, rows, texts=2)
    watch = outcome.watch
    yield (
        f"<p>Duplicates suppressed: {watch.duplicates:,} by the broker, {watch.skipped:,} by "
        f"consumers. Outputs committed and never sent: {report.outputs_pending:,}.</p>"
    )


def _anomalies(outcome: Outcome) -> Iterable[str]:
    verdict = outcome.verdict
    if not verdict.anomalies:
        return
    yield f"<h2>Anomalies ({verdict.anomalies_total:,})</h2>"
    stories = {story["id"]: story for story in verdict.stories}
    for anomaly in verdict.anomalies[:ANOMALIES_SHOWN_MAX]:
        first, _, rest = anomaly.explanation.partition("\n")
        yield f'<div class="anomaly"><b>{escape(anomaly.check)}</b>, {escape(anomaly.where)}: {escape(first)}'
        if rest:
            yield f"<details><summary>what it printed</summary><pre>{escape(rest)}</pre></details>"
        for message_id in anomaly.ids:
            yield f"<div><code>{escape(message_id)}</code></div>"
            if message_id in stories:
                yield from _story(stories[message_id], outcome.watch.began_ns)
        yield "</div>"


def _story(story: dict[str, Any], began_ns: int) -> Iterable[str]:
    yield "<details open><summary>its life</summary><pre>"
    if story.get("accepted") is not None:
        yield escape(f"accepted: {_facts(story['accepted'])}")
    for group in story.get("groups", ()):
        yield escape(f"group {group['group']}: {_facts(group)}")
    for event in story.get("events", ()):
        at_s = (event["mono_ns"] - began_ns) / 1e9
        what = f"{event['process']}: {event['meaning']}"
        yield escape(f"{at_s:8.2f} s  {what} [{event['event']} {_facts(event['fields'])}]")
    for note in story.get("notes", ()):
        yield escape(f"note: {note}")
    yield "</pre></details>"


def _facts(fields: Mapping[str, Any]) -> str:
    """Return fields as text; `tagged` and `group` are told elsewhere."""
    shown = ((name, value) for name, value in fields.items() if name not in {"tagged", "group"})
    return ", ".join(f"{name} {value}" for name, value in shown)


def _checks(outcome: Outcome) -> Iterable[str]:
    verdict = outcome.verdict
    yield "<h2>What was checked</h2>"
    yield (
        "<p>From the files alone: each id is accepted once, and for each group processed once, "
        "pending, parked or skipped (<code>oncemq verify</code>).</p>"
    )
    if verdict.checks_run:
        names = ", ".join(f"<code>{escape(name)}</code>" for name in verdict.checks_run)
        yield f"<details><summary>{len(verdict.checks_run)} checks of history, log and ledgers</summary><p>{names}</p></details>"
    if verdict.checks_not_run:
        missing = ", ".join(f"{name} (no {why})" for name, why in verdict.checks_not_run.items())
        yield f'<p class="soft">Not run: {escape(missing)}.</p>'


def _all_faults(outcome: Outcome) -> Iterable[str]:
    faults = outcome.faults
    counts = ", ".join(
        f"{sum(fault.kind == kind for fault in faults)} × {KIND_WORDS[kind]}"
        for kind in FAULT_KINDS
    )
    yield f"<h2>Every fault</h2><details><summary>{counts}</summary>"
    rows = [
        (f"{fault.at_s:.2f}", fault.name, fault.pid, KIND_WORDS[fault.kind], fault.detail)
        for fault in faults[:FAULTS_SHOWN_MAX]
    ]
    shown = [(at, name, str(pid), what, detail) for at, name, pid, what, detail in rows]
    yield _table(("second", "process", "pid", "what", "detail"), shown, texts=5)
    if len(faults) > FAULTS_SHOWN_MAX:
        yield f"<p>{len(faults) - FAULTS_SHOWN_MAX:,} more are not listed.</p>"
    yield "</details>"
