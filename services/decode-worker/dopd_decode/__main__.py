"""`python -m dopd_decode --worker-id w1`: a worker that starts in the decode role."""

from dopd.worker.process import run_worker

if __name__ == "__main__":
    run_worker("decode-worker", "decode")
