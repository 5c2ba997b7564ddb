"""`python -m dopd_prefill --worker-id w1`: a worker that starts in the prefill role."""

from dopd.worker.process import run_worker

if __name__ == "__main__":
    run_worker("prefill-worker", "prefill")
