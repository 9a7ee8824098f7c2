"""The training limit at full length, for data/benchmarks/training-limit.json.

``python tests/benchmarks/training_limit.py``: about two minutes on one core. A notebook draws this file.
"""

from __future__ import annotations

from record import write

from mpviz.train.limit import to_record, training_limit

if __name__ == "__main__":
    result = training_limit(progress=lambda share, words: print(f"{share:4.0%} {words}", flush=True))
    print(write("training-limit", "python tests/benchmarks/training_limit.py", to_record(result)))
    for run in (result.penalised, result.free):
        print(f"λ = {run.decay:g}\n{run.table.drop(columns='verdict').round(3).to_string()}")
