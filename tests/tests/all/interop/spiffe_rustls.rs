//! The crate `spiffe-rustls`, as client of our proxy and as its upstream, in this very process.

use std::{collections::BTreeSet, net::SocketAddr, path::PathBuf, sync::Arc};

use postern_tests::{eventually, world::App};
use rustls_pki_types::ServerName;
use spiffe::{X509Source, X509SourceBuilder};
use spiffe_rustls::{AllowList, authorizer, mtls_client, mtls_server};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    runtime::Runtime,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::{
    agent::{Mixed, WEB},
    get,
};

const VERSION: &str = "--http1.1";
const FRONTEND: &str = "spiffe://example.org/ns/default/sa/frontend";

fn own_program() -> PathBuf {
    std::env::current_exe().unwrap()
}

async fn source(mixed: &Mixed) -> X509Source {
    let endpoint = format!("unix://{}", mixed.socket.display());
    let built = X509SourceBuilder::new().endpoint(endpoint).build().await;
    built.unwrap()
}

/// Asks over mutual TLS with a server that must be `id`; tells the whole answer, or why there is none.
async fn ask(source: &X509Source, id: &str, to: SocketAddr, path: &str) -> Result<String, String> {
    let domains = BTreeSet::from(["example.org".try_into().unwrap()]);
    let config = mtls_client(source.clone())
        .authorize(authorizer::exact([id]).unwrap())
        .trust_domain_policy(AllowList(domains))
        .with_alpn_protocols([b"http/1.1"])
        .build()
        .unwrap();
    let told = |error: std::io::Error| error.to_string();
    let plain = TcpStream::connect(to).await.map_err(told)?;
    let name = ServerName::try_from("web.example").unwrap();
    let connector = TlsConnector::from(Arc::new(config));
    let mut stream = connector.connect(name, plain).await.map_err(told)?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: web\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.map_err(told)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.map_err(told)?;
    Ok(answer)
}

#[test]
fn spiffe_rustls_calls_us_over_several_rotations() {
    let (app, runtime) = (App::start().unwrap(), Runtime::new().unwrap());
    let mixed = Mixed::new(&own_program(), app.address, "peer");
    let source = runtime.block_on(source(&mixed));
    let ask = |id, path| runtime.block_on(ask(&source, id, mixed.web, path));
    let allowed = ask(WEB, "/api/orders").unwrap();
    assert!(allowed.starts_with("HTTP/1.1 200"), "{allowed}");
    let denied = ask(WEB, "/admin").unwrap();
    assert!(denied.starts_with("HTTP/1.1 403"), "{denied}");
    assert_eq!(app.reached(), 1);
    assert!(ask(FRONTEND, "/api/orders").is_err(), "it is not frontend");
    let serial = || {
        let svid = source.svid().unwrap();
        svid.leaf().as_bytes().to_vec()
    };
    let mut seen = BTreeSet::from([serial()]);
    eventually("three certificates", || {
        let answer = ask(WEB, "/api/orders").unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        seen.insert(serial());
        (seen.len() > 2).then_some(())
    })
    .unwrap();
}

#[test]
fn spiffe_rustls_is_refused_where_another_may_call() {
    let (app, runtime) = (App::start().unwrap(), Runtime::new().unwrap());
    let mixed = Mixed::new(&own_program(), app.address, "frontend");
    let source = runtime.block_on(source(&mixed));
    let denied = runtime.block_on(ask(&source, WEB, mixed.web, "/api/orders"));
    assert!(denied.unwrap().starts_with("HTTP/1.1 403"));
    assert_eq!(app.reached(), 0);
}

/// Serves whoever `allowed` is, for ever.
async fn serve(source: X509Source, listen: SocketAddr, allowed: &'static str) {
    let config = mtls_server(source)
        .authorize(authorizer::exact([allowed]).unwrap())
        .with_alpn_protocols([b"http/1.1"])
        .build()
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind(listen).await.unwrap();
    loop {
        let (plain, _) = listener.accept().await.unwrap();
        let Ok(mut stream) = acceptor.accept(plain).await else {
            continue;
        };
        let mut head = [0; 8192];
        if let Ok(1..) = stream.read(&mut head).await {
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\nconnection: close\r\n\r\nrustls";
            let _ = stream.write_all(answer).await;
            let _ = stream.shutdown().await;
        }
    }
}

#[test]
fn we_call_spiffe_rustls() {
    let (app, runtime) = (App::start().unwrap(), Runtime::new().unwrap());
    let mixed = Mixed::new(&own_program(), app.address, "peer");
    let source = runtime.block_on(source(&mixed));
    runtime.spawn(serve(source, mixed.peer, FRONTEND));
    let answered = || (get(mixed.out, VERSION, "/").0 == 200).then_some(());
    eventually("an answer", answered).unwrap();
    assert_eq!(get(mixed.out, VERSION, "/").1, "rustls");
}

#[test]
fn spiffe_rustls_refuses_us_where_another_may_call() {
    let (app, runtime) = (App::start().unwrap(), Runtime::new().unwrap());
    let mixed = Mixed::new(&own_program(), app.address, "peer");
    let source = runtime.block_on(source(&mixed));
    runtime.spawn(serve(source, mixed.peer, WEB));
    // In TLS 1.3 a client hears of it after its own last word: no usable answer.
    let refused = || (get(mixed.out, VERSION, "/").0 == 502).then_some(());
    eventually("the refusal", refused).unwrap();
}
