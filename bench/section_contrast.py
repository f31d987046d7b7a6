"""The section of pair_infonce in docs/benchmarks.md."""

from __future__ import annotations

from typing import Any

from sections import figure, machine, table

PLAIN = ("eager", "cross_entropy", "compiled")


def contrast_section(report: dict[str, Any]) -> list[str]:
    cells = []
    for row in report["rows"]:
        ours, held = row["ms"]["abkd_fast"]["p50"], row["above_data_mb"]
        cells.append([row["case"], figure(ours), f"{row['share_of_gemm']:.0%}"])
        for side in PLAIN:
            found = row["ms"].get(side)
            cells[-1].append(
                f"{figure(found['p50'])} ({found['p50'] / ours:.1f}x)" if found else "–"
            )
        cells[-1].append(f"{held['abkd_fast']:.0f}")
        cells[-1] += [
            f"{held[side]:.0f} ({held['abkd_fast'] / held[side]:.1%})" if side in held else "–"
            for side in PLAIN
        ]
    rates = [row["gemm_gflop_s"] for row in report["rows"]]
    return [
        "## pair_infonce: contrast of layer pairs",
        "",
        f"Loss and the gradients of both sides, B = {report['rows'][0]['rows']} random rows of",
        "unit length, float32. *eager*: a product, logsumexp, the diagonal; *cross_entropy*:",
        "torch's loss on the same scores; *compiled*: torch.compile of eager. Median ms (times",
        "ours). *of GEMM*: 8 B^2 d operations a pair (scores twice, two gradients) over our time,",
        "against the rate of a 2048 x 2048 product of torch's that took turns with the sides,",
        f"{min(rates):.0f} to {max(rates):.0f} GFLOP/s; ours computes scores once, 6 B^2 d, so",
        "that 133 % is that rate, and what is above it is a faster product. MB: peak of a fresh",
        "process above its size before (ours as a share).",
        f"`python bench/bench_pair_infonce.py`. {machine(report)}",
        f"Load of the machine when it ended: {report['environment']['load']:.0f}.",
        "",
        *table(
            ["case", "ours, ms", "of GEMM", *PLAIN, "ours, MB", *(f"{s}, MB" for s in PLAIN)], cells
        ),
        "",
    ]
