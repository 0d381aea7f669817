//! Upstreams that are down, slow, rude or gone, and what the caller gets.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    process::Command,
};

use postern_tests::eventually;

use super::Site;

#[test]
fn an_upstream_that_is_down_slow_or_back_is_told_from_one_that_answers() {
    // FAULTS 125
    let mut site = Site::start("[127.0.0.2]", "  requestTimeout: 500ms\n");
    let down = site.get("/");
    assert_eq!(
        (down.status, down.body.as_str()),
        (503, "upstream unavailable")
    );
    site.logged("cannot connect to the upstream");
    // Back, and served at once.
    site.upstream("up", "127.0.0.2", "web", "http1");
    assert_eq!(site.get("/").status, 200);
    assert_eq!(site.get("/slow").status, 504);
    site.logged("did not answer in time");
    assert_eq!(site.get("/").status, 200);
    assert!(site.metric("postern_proxy_upstream_retries_total", "connect") > 0);
}

#[test]
fn a_slow_try_is_given_up_for_another_while_there_is_time() {
    // FAULTS 125
    let settings = "  requestTimeout: 20s\n  retries: {attempts: 1, tryTimeout: 500ms}\n";
    let mut site = Site::start("[127.0.0.2]", settings);
    site.upstream("up", "127.0.0.2", "web", "http1");
    assert_eq!(site.get("/late").status, 200);
    assert_eq!(site.asked("up", "/late"), 2);
    // One that may not be done twice is not, and is not waited for either.
    let post = "POST /slow HTTP/1.1\r\nhost: web\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    assert_eq!(site.ask(post).status, 504);
    assert_eq!(site.asked("up", "/slow"), 1);
}

#[test]
fn an_answer_that_breaks_off_is_a_visible_cut_and_nothing_is_done_twice() {
    // FAULTS 95, 126
    let mut site = Site::start("[127.0.0.2]", "");
    site.upstream("up", "127.0.0.2", "web", "http1");
    let whole = site.get("/bytes/5");
    assert!(whole.status == 200 && whole.is_whole(), "{whole:?}");
    for path in ["/cut", "/cut-chunked"] {
        let cut = site.get(path);
        assert!(cut.status == 200 && !cut.is_whole(), "{cut:?}");
        assert_eq!(site.asked("up", path), 1);
    }
    // A body that was sent is not sent again, whatever the method.
    for method in ["POST", "PUT"] {
        let before = site.asked("up", "/swallow");
        let request = format!(
            "{method} /swallow HTTP/1.1\r\nhost: web\r\ncontent-length: 4\r\nconnection: close\r\n\r\nbody"
        );
        assert_eq!(site.ask(&request).status, 502);
        assert_eq!(site.asked("up", "/swallow"), before + 1, "{method}");
    }
    // Without a body: GET is asked again, as often as `retries` says; POST never.
    let ask = |method: &str| {
        let length = "content-length: 0\r\nconnection: close";
        site.ask(&format!(
            "{method} /break HTTP/1.1\r\nhost: web\r\n{length}\r\n\r\n"
        ))
    };
    assert_eq!(ask("POST").status, 502);
    assert_eq!(site.asked("up", "/break"), 1);
    assert_eq!(ask("GET").status, 502);
    assert_eq!(site.asked("up", "/break"), 1 + 3);
    assert_eq!(
        site.get("/").status,
        200,
        "the next one gets its own answer"
    );
}

#[test]
fn an_odd_answer_is_no_answer_and_never_the_next_callers() {
    // FAULTS 95
    let mut site = Site::start("[127.0.0.2]", "  retries: {attempts: 0}\n");
    site.upstream("up", "127.0.0.2", "web", "http1");
    for odd in [
        "lengths", "nul", "switch", "huge", "many", "text", "negative",
    ] {
        assert_eq!(site.get(&format!("/odd/{odd}")).status, 502, "{odd}");
        let next = site.get("/");
        assert_eq!((next.status, next.body.as_str()), (200, "hello\n"), "{odd}");
    }
    // A length beside chunks: the chunks count, and the length does not get through.
    let both = site.get("/odd/both");
    let one_length = !both.head.contains("content-length: 3");
    assert!(both.status == 502 || one_length, "{both:?}");
    // The first answer is good. What follows it belongs to nobody.
    for _ in 0..5 {
        let extra = site.get("/odd/extra");
        assert_eq!((extra.status, extra.body.as_str()), (200, "hello\n"));
        let next = site.get("/");
        assert_eq!((next.status, next.body.as_str()), (200, "hello\n"));
    }
}

#[test]
fn a_kept_connection_that_died_costs_no_request() {
    // FAULTS 125
    let mut site = Site::start("[127.0.0.2]", "  retries: {attempts: 0}\n");
    site.upstream("up", "127.0.0.2", "web", "http1");
    // Every answer says that the connection stays open; the upstream closes it all the same.
    for _ in 0..10 {
        assert_eq!(site.get("/goodbye").status, 200);
    }
    // It breaks when it is used again, after the request was written.
    for _ in 0..3 {
        assert_eq!(site.get("/second").status, 200);
    }
    assert!(site.metric("postern_proxy_upstream_dead_connections_replaced_total", "") > 0);
    // A request that may not be done twice is not: the caller is told.
    assert_eq!(site.get("/").status, 200);
    let post =
        "POST /second HTTP/1.1\r\nhost: web\r\ncontent-length: 4\r\nconnection: close\r\n\r\nbody";
    let before = site.asked("up", "/second");
    assert_eq!(site.ask(post).status, 502);
    assert_eq!(site.asked("up", "/second"), before + 1);
}

#[test]
fn many_requests_share_few_connections_and_outlive_them() {
    let mut site = Site::start("[127.0.0.2]", "  requestTimeout: 20s\n");
    site.upstream("up", "127.0.0.2", "web", "http2");
    let streams: Vec<_> = (0..60)
        .map(|number| {
            let mut stream = TcpStream::connect(site.out).unwrap();
            let line = format!("GET /wait/0.5?{number} HTTP/1.1");
            let request = format!("{line}\r\nhost: web\r\nconnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).unwrap();
            stream
        })
        .collect();
    for mut stream in streams {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    assert_eq!(
        site.events("up", "handshake").len(),
        1,
        "one connection for all"
    );
    // It is taken away, and nobody notices.
    for _ in 0..3 {
        assert_eq!(site.get("/goaway").status, 200);
        assert_eq!(site.get("/").status, 200);
    }
    site.world
        .signal("up", rustix::process::Signal::KILL)
        .unwrap();
    site.world.ended("up").unwrap();
    site.upstream("again", "127.0.0.2", "web", "http2");
    assert_eq!(site.get("/").status, 200);
}

#[test]
fn a_connection_whose_other_end_went_deaf_is_replaced() {
    // FAULTS 125
    let mut site = Site::start("[127.0.0.2]", "  requestTimeout: 1s\n");
    site.upstream("up", "127.0.0.2", "web", "http2");
    assert_eq!(site.get("/deaf").status, 200);
    // The upstream reads no more, also no PING: the connection is given up without a request.
    site.told("up", "handshake", 1);
    eventually("another connection", || {
        (site.get("/").status == 200).then_some(())
    })
    .unwrap();
    assert!(site.events("up", "handshake").len() > 1);
}

#[test]
fn a_caller_that_goes_away_ends_its_request_at_the_upstream() {
    // FAULTS 107
    let mut site = Site::start("[127.0.0.2]", "");
    site.upstream("up", "127.0.0.2", "web", "http2");
    let url = format!("http://{}/wait/600", site.out);
    let mut caller = Command::new("curl");
    caller.args(["-s", "--http2-prior-knowledge", &url]);
    site.world.spawn("caller", &mut caller).unwrap();
    site.told("up", "request", 1);
    assert_eq!(site.events("up", "reset"), Vec::<String>::new());
    site.world
        .signal("caller", rustix::process::Signal::KILL)
        .unwrap();
    site.told("up", "reset", 1);
    assert_eq!(site.get("/").status, 200);
    assert_eq!(site.events("up", "handshake").len(), 1);
}

#[test]
fn through_two_proxies_a_cut_stays_a_cut() {
    // FAULTS 125, 126
    let mut site = Site::start("[127.0.0.2]", "");
    site.pod();
    let whole = site.get("/bytes/5");
    assert!(whole.status == 200 && whole.is_whole(), "{whole:?}");
    for path in ["/cut", "/cut-chunked"] {
        // The reset may overtake the head, which is a cut just as well.
        let cut = site.get(path);
        assert!(cut.status == 502 || !cut.is_whole(), "{cut:?}");
    }
    let post =
        "POST /swallow HTTP/1.1\r\nhost: web\r\ncontent-length: 4\r\nconnection: close\r\n\r\nbody";
    assert_eq!(site.ask(post).status, 502);
    assert_eq!(site.asked("app", "/swallow"), 1);
    // The app goes, and its proxy stays.
    site.world
        .signal("app", rustix::process::Signal::KILL)
        .unwrap();
    site.world.ended("app").unwrap();
    assert_eq!(site.get("/").status, 503);
}
