//! By which name a request came, and from which page.
//!
//! A page of another site may name this server by a name of its own that it lets resolve to this
//! machine (DNS rebinding): then the browser takes both for one origin, but the `Host` header tells.
//! An IP address in it cannot be such a name. And a page that sends requests to this server's true
//! name has its own origin in the `Origin` header, which browsers do not let it leave out where a
//! request changes something.

use std::net::IpAddr;

use axum::extract::Request;
use axum::http::{HeaderMap, header};

use super::is_safe;
use crate::Options;
use crate::problem::{Code, Problem};

pub(crate) fn check(options: &Options, request: &Request) -> Result<(), Problem> {
    let host = host_of(request)?;
    if !is_ours(options, name_of(host)) {
        return Err(Problem::new(Code::HostNotAllowed, format!("this server is not called {host:?}"))
            .hint("start it with --allow-host NAME if that is its name"));
    }
    if is_safe(request.method()) {
        return Ok(());
    }
    let headers = request.headers();
    let foreign = |from: &str| {
        Err(Problem::new(Code::CrossOrigin, format!("a page of {from} may not change anything here")))
    };
    if let Some(origin) = headers.get(header::ORIGIN) {
        let origin = origin.to_str().unwrap_or_default();
        let authority = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
        if !authority.is_some_and(|authority| authority.eq_ignore_ascii_case(host)) {
            return foreign(if origin.is_empty() { "another site" } else { origin });
        }
    } else if headers.get("sec-fetch-site").is_some_and(|site| site != "same-origin" && site != "none") {
        return foreign("another site");
    }
    Ok(())
}

/// The one `Host`, or that of a request in absolute form.
fn host_of(request: &Request) -> Result<&str, Problem> {
    let malformed = |detail: &str| Problem::new(Code::MalformedRequest, detail);
    let headers: &HeaderMap = request.headers();
    let mut hosts = headers.get_all(header::HOST).iter();
    let host = match (hosts.next(), hosts.next()) {
        (Some(host), None) => host.to_str().map_err(|_| malformed("the Host header is no text"))?,
        (None, _) => request
            .uri()
            .authority()
            .map(|authority| authority.as_str())
            .ok_or_else(|| malformed("the request has no Host header"))?,
        _ => return Err(malformed("the request has several Host headers")),
    };
    match request.uri().authority() {
        Some(authority) if authority.as_str() != host => {
            Err(malformed("the request's target and its Host header differ"))
        }
        _ => Ok(host),
    }
}

/// Without the port.
fn name_of(host: &str) -> &str {
    if let Some((address, _)) = host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        return address;
    }
    host.rsplit_once(':').map_or(host, |(name, _)| name)
}

fn is_ours(options: &Options, name: &str) -> bool {
    if name.eq_ignore_ascii_case("localhost") {
        return true;
    }
    match name.parse::<IpAddr>() {
        Ok(address) => options.any_address || address.is_loopback(),
        Err(_) => {
            let name = name.trim_end_matches('.');
            options.allow_hosts.iter().any(|allowed| allowed.eq_ignore_ascii_case(name))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(options: &Options, headers: &[(&str, &str)], method: &str) -> Result<(), Code> {
        let mut request = Request::builder().method(method).uri("/api/v1/jobs");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        check(options, &request.body(axum::body::Body::empty()).unwrap()).map_err(|problem| problem.code())
    }

    #[test]
    fn names_that_can_be_rebound_are_refused() {
        let options = Options { allow_hosts: vec!["models.example".into()], ..Options::default() };
        for ours in
            ["localhost", "LOCALHOST:7747", "127.0.0.1:1", "127.8.8.8", "[::1]:7747", "models.example:80"]
        {
            assert_eq!(answer(&options, &[("host", ours)], "GET"), Ok(()), "{ours}");
        }
        for other in
            ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:7747", "10.0.0.1", "", "[::2]"]
        {
            assert_eq!(answer(&options, &[("host", other)], "GET"), Err(Code::HostNotAllowed), "{other}");
        }
        assert_eq!(answer(&options, &[], "GET"), Err(Code::MalformedRequest));
        assert_eq!(
            answer(&options, &[("host", "localhost"), ("host", "evil.example")], "GET"),
            Err(Code::MalformedRequest)
        );
        let wide = Options { any_address: true, ..Options::default() };
        assert_eq!(answer(&wide, &[("host", "10.0.0.1:7747")], "GET"), Ok(()));
        assert_eq!(answer(&wide, &[("host", "evil.example")], "GET"), Err(Code::HostNotAllowed));
    }

    #[test]
    fn pages_of_other_origins_change_nothing() {
        let options = Options::default();
        let post = |headers: &[(&str, &str)]| {
            answer(&options, &[&[("host", "localhost:7747")], headers].concat(), "POST")
        };
        assert_eq!(post(&[]), Ok(()), "no browser");
        assert_eq!(post(&[("origin", "http://localhost:7747")]), Ok(()));
        assert_eq!(post(&[("sec-fetch-site", "same-origin")]), Ok(()));
        for origin in
            ["http://evil.example", "null", "http://localhost:7748", "http://localhost", "localhost:7747", ""]
        {
            assert_eq!(post(&[("origin", origin)]), Err(Code::CrossOrigin), "{origin}");
        }
        assert_eq!(post(&[("sec-fetch-site", "cross-site")]), Err(Code::CrossOrigin));
        assert_eq!(post(&[("sec-fetch-site", "same-site")]), Err(Code::CrossOrigin));
        assert_eq!(
            answer(&options, &[("host", "localhost:7747"), ("origin", "http://evil.example")], "GET"),
            Ok(()),
            "it reads nothing: no answer allows other origins"
        );
    }
}
