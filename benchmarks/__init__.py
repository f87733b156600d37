"""What snapctl costs beside its peers: ``python -m benchmarks`` measures everything, ``python -m benchmarks.X`` a part.

Measuring, from the bottom: `measure` (rounds, pairs, ratios), `processes` (programs that are run and timed),
`servers` (NBD servers under comparison) and `fio` (what loads them). The parts: `serving`, `bulk`, `reflink`,
`startup`, `snapshots` and `growth`. What they are to reach stands in `aims`; `document` writes docs/performance.md.
"""
