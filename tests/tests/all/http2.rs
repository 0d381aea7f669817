//! Frames of HTTP/2 as no library would send them.
//!
//! The cases are tables in `tests/python/http2.py`; see `http1`. In each a good caller is served
//! meanwhile or afterwards, and the proxy's memory stays within a bound.

use super::http1::{Between, SHORT_LIMITS};

#[track_caller]
fn holds(group: &str) {
    Between::start("http2.py", "").holds(&[group]);
}

#[test]
fn a_storm_of_resets_disturbs_nobody() {
    // FAULTS 96, 97
    holds("resets");
}

#[test]
fn continuation_frames_without_end_are_cut_off() {
    // FAULTS 98
    holds("continuations");
}

#[test]
fn floods_of_small_frames_are_bounded() {
    // FAULTS 99
    holds("floods");
}

#[test]
fn answers_that_nobody_takes_are_given_up() {
    // FAULTS 100
    holds("windows");
}

#[test]
fn header_tables_and_lists_have_bounds() {
    // FAULTS 101
    holds("tables");
}

#[test]
fn streams_above_the_limit_and_bodies_without_end_are_refused() {
    // FAULTS 102
    holds("streams");
}

#[test]
fn one_authority_rules_each_request() {
    // FAULTS 103, 106, 112
    holds("authorities");
}

#[test]
fn malformed_fields_end_their_stream_and_reach_nobody() {
    // FAULTS 104, 108, 110, 111, 114, 115
    holds("fields");
}

#[test]
fn lengths_and_data_must_agree() {
    // FAULTS 105
    holds("lengths");
}

#[test]
fn grpc_keeps_trailers_deadlines_and_cancellations() {
    // FAULTS 107, 114
    holds("grpc");
}

#[test]
fn callers_that_say_or_take_nothing_are_cut_off() {
    // FAULTS 94, 100
    Between::start("http2.py", SHORT_LIMITS).holds(&["silence"]);
}
