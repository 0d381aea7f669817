//! Frames of HTTP/2 as no library would send them.
//!
//! The cases are tables in `tests/python/http2.py`; see `http1`. In each a good caller is served
//! meanwhile or afterwards, and the proxy's memory stays within a bound.

use std::{
    fs,
    time::{Duration, SystemTime},
};

use time::OffsetDateTime;

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
fn spaces_around_a_value_are_refused_for_an_app_would_cut_them_off() {
    // FAULTS 104, 111
    holds("values");
}

#[test]
fn frames_out_of_turn_or_of_a_wrong_size_are_refused() {
    // FAULTS 99, 104, 105
    holds("states_and_sizes");
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
fn a_certificate_without_its_key_renews_nothing() {
    holds("renewals");
}

#[test]
fn callers_that_say_or_take_nothing_are_cut_off() {
    // FAULTS 94, 100
    Between::start("http2.py", SHORT_LIMITS).holds(&["silence"]);
}

#[test]
fn a_caller_is_asked_to_leave_before_its_certificate_ends() {
    // FAULTS 132
    let both = Between::start("http2.py", ", limits: {headTimeout: 60s}");
    let soon = OffsetDateTime::from(SystemTime::now()) + Duration::from_secs(15);
    let caller = "spiffe://example.org/workload/frontend";
    both.authority
        .write_leaf(both.world.path(), "caller", caller, |params| {
            params.not_after = soon
        })
        .unwrap();
    both.holds(&["expiry"]);
    // Nobody had to be cut.
    let log = fs::read_to_string(both.world.log("proxy")).unwrap();
    assert!(!log.contains("an open connection may not go on"), "{log}");
}
