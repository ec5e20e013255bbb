"""D, G, H and I: rows that tests and programs of other folders prove."""

from __future__ import annotations

from tests.reliability.rows import fault, not_here, program, tests

# -- D: hostile or broken engines ----------------------------------------------------------------------------
CONFORMS, SURVIVES = "engines/test_conformance.py::test_conforms", "engines/test_conformance.py::test_survives"
READS, KEEPS = "engines/test_conformance.py::test_reads_over", "engines/test_conformance.py::test_keeps"

tests("D1", "streams cut at every byte, of every driver", "the same text", "engines/test_sse_decoder.py", READS)
tests("D2", "characters cut in their middle, bytes that are no UTF-8", "exact, or failed; 0 mojibake", READS, SURVIVES)
tests("D3", "lines and events without end", "failed at 1 MiB", SURVIVES, "engines/test_sse_decoder.py::test_too_long")
tests(
    "D4",
    "an engine that ignores max_tokens, a task that outgrows its log",
    "cut at the limit, engine told",
    "services/test_replicas.py::test_an_engine_that_goes_on_after_max_tokens_is_cut",
    "services/test_replicas.py::test_an_engine_that_never_ends_is_stopped_at_its_limit",
    "domain/test_core.py::test_a_task_that_outgrows_its_log_fails",
)
tests(
    "D5",
    "500, resets and clean ends, before and after output",
    "again only before output; 0 duplicated tokens",
    SURVIVES,
    "services/test_replicas.py::test_a_task_fails_over_before_its_first_token",
    "services/test_replicas.py::test_every_fault_ends_the_task_once_and_frees_the_slot",
    "domain/test_retries.py",
)
tests("D6", "events that are not JSON, of other shapes, with odd counts", "failed; spend as held", SURVIVES, KEEPS)
tests(
    "D7",
    "redirects, coded and odd replies",
    "refused; no hop",
    SURVIVES,
    "engines/test_transport.py::test_hostile_replies",
)
tests(
    "D8",
    "silence before the answer, before the first token, between two",
    "a limit for each",
    "services/test_watchdogs.py",
    "engines/test_transport.py::test_time_limit",
    KEEPS,
)
program(
    "D9",
    "real engines killed, frozen, slowed and lying (tasks)",
    "0 findings, no engine left",
    "tests.chaos --seed 1 --count {}",
    40,
    1_000,
)
tests(
    "D10",
    "engines whose health is fine and whose work is not",
    "no work after 3 failures until a probe",
    "services/test_watchdogs.py::test_an_engine_that_hangs_task_after_task_gets_no_more",
    "services/test_replicas.py::test_an_engine_that_keeps_failing_is_left_alone_until_a_probe_works",
    "services/test_replicas.py::test_a_replica_that_cannot_decode_is_not_ready",
)
tests(
    "D11",
    "bytes of another answer on a kept connection",
    "never the next one's answer",
    "engines/test_transport.py::test_stray_bytes_are_not_the_next_answer",
)
tests(
    "D12",
    "leaving between request and answer",
    "the connection is closed, not kept",
    "engines/test_transport.py::test_leaving_early_closes_the_connection",
    "engines/test_transport.py::test_cancelling_before_the_head_closes_the_connection",
)
tests(
    "D13",
    "sampling out of bounds",
    "400; forwarded 0",
    "http/test_errors.py::test_a_field_out_of_its_bounds_is_400",
    "services/test_admission.py::test_a_knob_the_engine_does_not_have_is_named",
)

# -- G: HTTP and input (G1: wire.py) -------------------------------------------------------------------------
tests("G2", "every kind of JSON and non-JSON, on every route with a body", "5xx 0", "http/test_json_grammar.py")
tests(
    "G3",
    "each limit one below, at and above; lengths that lie; a gigabyte declared and unsent",
    "413, 414, 431, 408; read past the limit <= 64 KiB",
    "http/test_errors.py",
    "http/test_crowd.py",
    "http/test_raw.py",
)
tests(
    "G4",
    "content types and codings",
    "415, or read as JSON",
    "http/test_errors.py::test_json_is_json_however_it_is_spelt",
    "http/test_errors.py::test_anything_else_is_415",
    "http/test_errors.py::test_a_body_without_a_content_type_is_415",
    "http/test_errors.py::test_a_coded_body_is_415",
)
program(
    "G5", "requests made up from the contracts", "5xx 0, undocumented 0", "tests.fuzz --seed 1 --count {}", 600, 10_000
)
tests("G6", "every path x 9 methods", "405 with the whole Allow", "http/test_routes.py")
tests(
    "G7",
    "every error there is",
    "an envelope, nothing of the inside",
    "http/test_errors.py",
    "wire/test_error_table.py",
)
not_here("G8", "tracing is work to come (OD-23); unknown headers change nothing")
tests("G9", "the contracts' lint", "0 findings", "contract/test_contract_lint.py")
tests(
    "G10",
    "slashes, dots, codes, absolute targets",
    "404 or 400, no redirect",
    "http/test_routes.py::test_what_no_contract_documents_is_not_served",
    "http/test_routes.py::test_an_encoded_slash_is_no_slash",
    "http/test_routes.py::test_a_target_that_is_no_path_is_refused",
)
not_here("G11", "streams go past ASGI, so nothing can hold them back; see C12")

# -- H: security (H2: wire.py) -------------------------------------------------------------------------------
tests(
    "H1",
    "every operation, undocumented paths and methods x 16 bad tokens",
    "401 before all else; open only what is listed",
    "http/test_auth.py",
)
tests(
    "H3",
    "a canary through logs, metrics, answers, journal, configuration, engines",
    "hits 0",
    "services/test_telemetry.py::test_no_secret_reaches_the_log_the_metrics_or_an_answer",
    "http/test_auth.py::test_the_token_is_nowhere_in_the_log",
    "ports/test_sqlite_journal.py::test_a_prompt_is_nowhere_once_its_task_has_ended",
    KEEPS,
)
tests(
    "H4",
    "token files: empty, unreadable, with a line end",
    "refused, or trimmed; read once: a new token needs a restart",
    "http/test_auth.py::test_a_token_file_is_read_without_its_line_end",
    "http/test_auth.py::test_a_token_that_is_none_is_a_mistake",
)
tests(
    "H5",
    "references and redirects that lead inside",
    "canary hits 0",
    "fetch/test_policy.py",
    "domain/test_modelref.py",
)
tests("H6", "artifact ids that are none, links", "reads outside the root 0", "ports/test_artifact_store.py")
tests(
    "H7",
    "correlation ids of every kind",
    "kept or replaced, never echoed raw",
    "http/test_errors.py::test_a_good_correlation_id_is_echoed_on_errors",
    "http/test_errors.py::test_a_bad_correlation_id_is_replaced_never_refused",
    "http/test_raw.py::test_what_is_no_good_request_is_refused",
)
tests(
    "H8",
    "line ends, escapes and quotes in client text",
    "one record, one line",
    "services/test_telemetry.py::test_no_client_text_breaks_a_line",
)
tests("H9", "downloads larger than declared or allowed, coded ones", "cut off", "fetch/test_https.py")
tests(
    "H10",
    "content that is not its digest, 50 of one at once",
    "refused; stored once",
    "fetch/test_https.py::test_a_wrong_digest_fails_closed",
    "fetch/test_https.py::test_many_who_ask_for_one_reference_share_one_download",
    "ports/test_artifact_store.py::test_the_same_artifact_put_by_many_at_once_is_stored_once",
)
not_here("H11", "artifacts are served as JSON documents only, never as files of their own type")
tests(
    "H12",
    "foreign Host and Origin",
    "403 every time; no CORS header",
    "http/test_auth.py::test_a_foreign_host_is_403",
    "http/test_auth.py::test_a_foreign_origin_is_403",
)
not_here("H13", "one caller owns everything; task and session ids are the client's, artifact ids are digests")
not_here("H14", "there is no shared store; the journal is JSON in bound parameters (see H16)")
tests(
    "H15",
    "bind, modes, what is open",
    "loopback; 0700, 0600; docs behind the token",
    "http/test_auth.py::test_a_reachable_address_needs_a_token",
    "ports/test_sqlite_journal.py::test_the_directory_and_the_files_are_private",
    "ports/test_artifact_store.py::test_files_are_private_and_where_the_id_says",
)
tests(
    "H16",
    "static rules (ruff's S): SQL from text, shells, pickles, weak hashes",
    "findings 0",
    "contract/test_security_lint.py",
)

# -- I: drain, reload, shutdown ------------------------------------------------------------------------------
program(
    "I1",
    "reloads that fail at every stage",
    "the old model serves on, nothing lost",
    "tests.reloads --seed 3 --kills 0 --count {}",
    20,
    500,
)
not_here("I2", "a reload replaces one pool's model (I1, I3); the file is read once at start")
program(
    "I3",
    "kill -9 at each of the 13 steps of a reload (rounds)",
    "the old model or the new one",
    "tests.reloads --seed 3 --count 0 --kills {}",
    1,
    10,
)
tests(
    "I4", "operations on top of each other", "one at a time, 409", "services/test_reload.py", "domain/test_control.py"
)
tests("I5", "drains with work that runs and waits", "starts after the ack 0", "domain/test_control.py")
fault(
    "I6",
    "I6 SIGTERM with open streams",
    "SIGTERM with 20 streams and work that waits",
    "exit <= grace + 1 s, ends told",
)
fault("I9", "I6 a second SIGTERM", "a second SIGTERM within a grace of 60 s", "exit at once")
fault("I8", "I8 a storm of signals", "200 SIGTERM and SIGINT", "one orderly exit")
tests(
    "I7",
    "slots that become fewer",
    "what runs ends; nothing more is leased",
    "domain/test_core.py::test_no_two_leases_share_a_slot_and_a_restart_empties_them",
)

# -- K: time -------------------------------------------------------------------------------------------------
fault("K1", "K1 the wall clock jumps", "a day forwards, two back", "no deadline moves")
