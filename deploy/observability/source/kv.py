"""KV and LMCache: where the KV of input came from, and how full engines and stores are."""

from panel import Dashboard, Panel, Query, Row, named

INPUT = "sum(rate(dopd_worker_input_tokens_total[$__rate_interval]))"
COMPUTED = 'sum(rate(dopd_worker_input_tokens_total{kv="computed"}[$__rate_interval]))'


def lmcache(name: str) -> str:
    """Per second, of all LMCache servers."""
    return f"sum(rate(lmcache_mp_{name}_total[$__rate_interval]))"


def emulated(name: str) -> str:
    """Per second, of all emulated stores."""
    return f"sum(rate(dopd_kv_store_{name}_tokens_total[$__rate_interval]))"


ENGINES = (
    Panel("Input by origin", "Where the KV of segments' input came from: the engine's own cache, the store, or it was "
          "computed. A request has two segments; the second one fetches what the first has computed.", "short",
          (Query("sum by (kv) (rate(dopd_worker_input_tokens_total[$__rate_interval]))", "{{kv}}"),), axis="tokens/s",
          stack=True, least=0),
    Panel("Share of input not computed", "From the engine's own cache or the store.", "percentunit",
          (Query(f"1 - {COMPUTED} / {INPUT}", "not computed"),), least=0, most=1),
    Panel("KV memory of engines", "In use, in whole blocks.", "percentunit",
          (Query(named("dopd_kv_used_tokens / dopd_kv_total_tokens"), "{{service}}"),), least=0, most=1),
    Panel("KV missed", "Tokens that should have been in the store and were not, so that they were computed again; "
          "counted when requests end.", "short",
          (Query("sum(rate(dopd_kv_missed_tokens_total[$__rate_interval]))", "missed"),), axis="tokens/s", least=0),
    Panel("Segments with a miss", "That found less KV than was promised.", "short",
          (Query(named("increase(dopd_kv_misses_total[$__rate_interval])"), "{{service}}"),), axis="segments",
          bars=True, stack=True, least=0),
    Panel("Store answers", "1 while the KV store answers this worker.", "none",
          (Query(named("dopd_kv_store_up"), "{{service}}"),), axis="up", least=0, most=1),
)  # fmt: skip

EMULATED = (
    Panel("Emulated store", "Tokens asked for, found, and dropped to make room.", "short", (
        Query(emulated("looked_up"), "asked for"), Query(emulated("found"), "found"),
        Query(emulated("dropped"), "dropped"),
    ), axis="tokens/s", least=0),
    Panel("Size of the emulated store", "What it holds, and the most it can.", "short", (
        Query("sum(dopd_kv_store_used_tokens)", "held"), Query("max(dopd_kv_store_tokens)", "room"),
    ), axis="tokens", least=0),
)  # fmt: skip

LMCACHE = (
    Panel("LMCache: tokens looked up", "By engines, and those of them that were there (in memory or a second tier).",
          "short", (
              Query(lmcache("lookup_requested_tokens"), "asked for"), Query(lmcache("lookup_hit_tokens"), "found"),
              Query(lmcache("lookup_hit_l2_tokens"), "found in the second tier"),
          ), axis="tokens/s", least=0),
    Panel("LMCache: memory", "Share of the first tier in use.", "percentunit",
          (Query("max by (instance) (lmcache_mp_l1_usage_ratio)", "{{instance}}"),), least=0, most=1),
    Panel("LMCache: chunks", "Written and read in the first tier.", "short", (
        Query(lmcache("l1_write_chunks"), "written"), Query(lmcache("l1_read_chunks"), "read"),
    ), axis="chunks/s", least=0),
    Panel("LMCache: bytes held", "In the first tier.", "bytes",
          (Query("sum(lmcache_mp_l1_memory_usage_bytes)", "held"),), least=0),
)  # fmt: skip

DASHBOARD = Dashboard(
    "dopd-kv", "DOPD: KV and LMCache",
    "Where the KV of input came from, and how full engines and stores are. A cluster has either an emulated store or "
    "LMCache servers; the row of the other one is empty.",
    (Row("Engines", ENGINES), Row("Emulated store", EMULATED), Row("LMCache server", LMCACHE)),
)  # fmt: skip
