"""The tables of the page of benchmarks: from rows of results to cells of text."""

from __future__ import annotations

from collections.abc import Sequence

Row = dict[str, str]


def markdown(table: list[list[str]]) -> str:
    """Return a table in Markdown; the first row holds the headings."""
    rule = ["---"] * len(table[0])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (table[0], rule, *table[1:]))


def number(text: str | float | None, digits: int = 1) -> str:
    """Return a cell: empty for nothing, thousands apart, at most so many digits."""
    if text in ("", None):
        return ""
    assert text is not None
    value = float(text)
    return f"{value:,.0f}" if abs(value) >= 100 or not digits else f"{value:.{digits}f}"


def pivot(
    rows: Sequence[Row], *, keys: Sequence[str], column: str
) -> dict[tuple[str, ...], dict[str, Row]]:
    """Group rows by keys, in order of their numbers; each group holds rows by a column."""
    groups: dict[tuple[str, ...], dict[str, Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), {})[row[column]] = row

    def order(key: tuple[str, ...]) -> list[tuple[float, str]]:
        return [(float(part), "") if part.isdecimal() else (0.0, part) for part in key]

    return {key: groups[key] for key in sorted(groups, key=order)}


def cell(by_name: dict[str, Row], name: str, column: str) -> str:
    """Return a cell of the row of this name; empty where there is no such row.

    Raises:
        KeyError: the row has no such column.
    """
    return by_name[name][column] if name in by_name else ""


def identity_table(rows: list[Row]) -> list[list[str]]:
    table = [["model", "answers of", "against", "differ", "per 1,000 tokens", "ties", "widest gap"]]
    table += [
        [
            f"{row['model']}, {row['dtype']}",
            f"{row['method']}, {row['at_once']} at once",
            f"{row['against']}, {row['against_at_once']} at once",
            f"{row['differing']} of {row['requests']}",
            number(row["per_1000_tokens"], 2),
            row["ties"],
            f"{row['widest_steps']} steps" if row["widest_steps"] else "",
        ]
        for row in rows
    ]
    return table


def samples_table(rows: list[Row]) -> list[list[str]]:
    """Return a line for each kind of request, with all answers that were compared."""
    names = list(dict.fromkeys(row["answers"] for row in rows))
    table = [["model", "temperature", "limits", "requests", *names, "accepted tokens"]]
    keys = ("model", "dtype", "runner", "temperature", "limits")
    groups: dict[tuple[str, ...], dict[str, Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), {})[row["answers"]] = row
    for (model, dtype, runner, *kind), by_name in groups.items():
        last = list(by_name.values())[-1]
        differ = [f"{row['differing']} differ" if row else "" for row in map(by_name.get, names)]
        about = [f"{model}, {dtype}, runner {runner}", *kind, last["requests"]]
        table.append([*about, *differ, last["accepted"]])
    return table


def replay_table(rows: list[Row]) -> list[list[str]]:
    table = [["trace", "method", "MAL", "acceptance", "drafted per step", "cost", "speedup"]]
    for row in rows:
        values = ("mean_acceptance_length", "acceptance_rate", "drafted_per_step")
        table.append(
            [
                row["trace"],
                row["method"],
                *(number(row[name], 3) for name in values),
                row["cost"],
                number(row["model_speedup"], 3),
            ]
        )
    return table


def engine_table(rows: list[Row]) -> list[list[str]]:
    table = [["model", "trace", "at once", "method", "tokens/s", "to none", "MAL", "identical"]]
    keys = ("model", "trace", "concurrency")
    for key, methods in pivot(rows, keys=keys, column="method").items():
        none = float(methods["none"]["tokens_per_s"]) if "none" in methods else None
        for method, row in methods.items():
            ratio = None if none is None else float(row["tokens_per_s"]) / none
            identical = row["identical_outputs"]
            table.append(
                [
                    *key,
                    method,
                    number(row["tokens_per_s"], 0),
                    number(ratio, 2),
                    number(row["mean_acceptance_length"], 2),
                    f"{identical} of {row['requests']}" if identical else "",
                ]
            )
    return table


def figures_table(rows: list[Row]) -> list[list[str]]:
    table = [["section", "figure", "value", "unit", "goal"]]
    names = ("section", "figure", "value", "unit", "target")
    return [*table, *([row[name] for name in names] for row in rows)]


def serving_table(rows: list[Row]) -> list[list[str]]:
    table = [["model", "section", "method", "at once", "figure", "value", "unit", "range"]]
    for row in rows:
        names = ("model", "section", "method", "concurrency", "name")
        value = number(row["value"], 3)
        table.append([*(row[name] for name in names), value, row["unit"], row["note"]])
    return table


def exact_table(rows: list[Row]) -> list[list[str]]:
    names = ("section", "from", "requests", "name")
    table = [["section", "from", "requests", "figure", "value", "unit", "note"]]
    for row in rows:
        cells = (row[name] for name in names)
        table.append([*cells, number(row["value"], 3), row["unit"], row["note"]])
    return table


def pins_table(rows: list[Row]) -> list[list[str]]:
    table = [["model", "section", "pins", "requests", "figure", "value", "unit", "note"]]
    for row in rows:
        cells = (row[name] for name in ("model", "section", "pins", "requests", "name"))
        table.append([*cells, number(row["value"], 3), row["unit"], row["note"]])
    return table


def step_table(rows: list[Row]) -> list[list[str]]:
    names = {"reprise": "Reprise", "reprise-2-threads": "on 2 threads"}
    names |= {"suffix": "SuffixDecoding", "ngram": "n-gram"}
    table = [["batch", "context", *names.values(), "drafted (Reprise)"]]
    for key, methods in pivot(rows, keys=("batch", "context"), column="method").items():
        times = [number(cell(methods, name, "us_per_request_p50")) for name in names]
        table.append([*key, *times, number(cell(methods, "reprise", "drafted_per_step"))])
    return table


def corpus_table(rows: list[Row]) -> list[list[str]]:
    names = {"reprise": "Reprise", "suffix": "SuffixDecoding"}
    head = [f"{name}, {unit}" for unit in ("bytes a token", "tokens/s") for name in names.values()]
    table = [["cached tokens", *head]]
    for (tokens,), methods in pivot(rows, keys=("tokens",), column="method").items():
        cells = [
            number(cell(methods, name, column))
            for column in ("bytes_per_token", "tokens_per_s")
            for name in names
        ]
        table.append([number(tokens), *cells])
    return table


def upkeep_table(rows: list[Row]) -> list[list[str]]:
    head = [f"{what}, {how}" for what in ("wait", "step") for how in ("p50", "p99", "longest")]
    table = [["cache", "changes", *(f"{name}, ms" for name in head)]]
    for row in rows:
        names = [f"{what}_us_{how}" for what in ("wait", "step") for how in ("p50", "p99", "max")]
        times = [number(float(row[name]) / 1e3, 2) for name in names]
        table.append([row["cache"], number(row["changes"], 0), *times])
    return table


def verification_table(rows: list[Row]) -> list[list[str]]:
    names = ("batch", "drafts", "vocab", "sampling")
    table = [
        ["batch", "drafts each", "vocabulary", "sampling", "Reprise", "torch", "vLLM", "ratio"]
    ]
    for key, by_name in pivot(rows, keys=names, column="implementation").items():
        times = [number(cell(by_name, n, "p50_us")) for n in ("triton", "torch", "vllm")]
        table.append([*key, *times, number(cell(by_name, "triton", "times_vllm"), 2)])
    return table


def drafting_table(rows: list[Row]) -> list[list[str]]:
    names = ("batch", "drafts", "context", "near", "sorted")
    table = [["batch", "drafts each", "context", "near answers", "corpus", "median, us"]]
    in_order = sorted(rows, key=lambda row: [int(row[name]) for name in names])
    table += ([*(row[name] for name in names), number(row["p50_us"], 0)] for row in in_order)
    return table


def forecast_table(rows: list[Row]) -> list[list[str]]:
    names = ("suffix", "v1", "v1-ahead", "v2", "v2-adaptive")
    table = [["trace", "warm rows", "at once", "none, tokens/s", *names, "v2, all busy", "MAL, v2"]]
    keys = ("trace", "warm_rows", "concurrency")
    for key, engines in pivot(rows, keys=keys, column="engine").items():
        table.append(
            [
                *key,
                number(cell(engines, "none", "tokens_per_s"), 0),
                *(number(cell(engines, name, "to_none"), 2) for name in names),
                number(cell(engines, "v2", "busy_to_none"), 2),
                number(cell(engines, "v2", "mean_acceptance_length"), 2),
            ]
        )
    return table


def check_table(rows: list[Row]) -> list[list[str]]:
    table = [["engine", "trace", "at once", "requests", "measured", "in virtual time", "off, %"]]
    for row in rows:
        measured, modelled = float(row["measured_to_none"]), float(row["to_none"])
        names = ("engine", "trace", "concurrency", "requests")
        off = f"{100 * (modelled / measured - 1):+.0f}"
        table.append([*(row[n] for n in names), number(measured, 2), number(modelled, 2), off])
    return table


def gpu_table(rows: list[Row]) -> list[list[str]]:
    names = list(dict.fromkeys(row["method"] for row in rows if row["method"] != "none"))
    ours = names[0] if names else ""
    table = [
        ["model", "requests", "at once", "none, tokens/s", *names, f"MAL, {ours}", "identical"]
    ]
    measured = pivot(rows, keys=("model", "workload", "concurrency"), column="method")
    for key in sorted(measured, key=lambda key: (key[0], key[1].split()[0], int(key[2]))):
        by_name = measured[key]
        table.append(
            [
                key[0],
                f"{cell(by_name, 'none', 'requests')} {key[1].split()[0]}",
                key[2],
                number(cell(by_name, "none", "tokens_per_s"), 0),
                *(number(cell(by_name, name, "to_none"), 2) for name in names),
                number(cell(by_name, ours, "mean_acceptance_length"), 2),
                cell(by_name, ours, "identical_outputs") or cell(by_name, ours, "note"),
            ]
        )
    return table
