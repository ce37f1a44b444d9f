//! Somebody who visits the console without a browser: what is sent, and what comes back.

use std::{
    collections::BTreeSet,
    io::{BufReader, Write as _},
    net::TcpStream,
};

use crate::{
    http::exchange_text,
    managed::{LISTEN, Managed, PASSWORD},
};

/// An answer.
pub struct Got {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Got {
    /// A line of the head.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|l| l.split_once(": "));
        lines.into_iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// What the form of this page has to show that it is ours.
    #[must_use]
    pub fn form_token(&self) -> &str {
        let field = self.body.split("name=\"form_token\" value=\"").nth(1).expect("a form");
        field.split('"').next().expect("its value")
    }

    /// Paths that the page leads to.
    #[must_use]
    pub fn links(&self) -> BTreeSet<String> {
        let quoted = |attribute: &str| {
            let parts = self.body.split(attribute).skip(1);
            parts.filter_map(|rest| rest.split('"').next()).map(str::to_owned).collect::<Vec<_>>()
        };
        let all = [quoted("href=\""), quoted("hx-get=\""), quoted("data-history=\"")].concat();
        all.into_iter()
            .filter(|l| l.starts_with('/'))
            .map(|l| l.split('#').next().unwrap_or_default().to_owned())
            .collect()
    }
}

/// A browser of somebody's: keeps cookies.
pub struct Visitor<'a> {
    pub node: &'a Managed,
    pub cookie: Option<String>,
}

impl Visitor<'_> {
    fn request(&self, method: &str, path: &str, more: &str, body: &str) -> String {
        let cookie = self.cookie.as_ref().map(|c| format!("cookie: {c}\r\n")).unwrap_or_default();
        let length = body.len();
        format!(
            "{method} {path} HTTP/1.1\r\nhost: {LISTEN}\r\nconnection: close\r\ncontent-type: application/x-www-form-urlencoded\r\n\
             {cookie}{more}content-length: {length}\r\n\r\n{body}"
        )
    }

    /// An answer that goes on, from its first byte.
    #[must_use]
    pub fn stream(&self, path: &str) -> BufReader<TcpStream> {
        let mut stream = self.node.node.run(|| TcpStream::connect(LISTEN)).expect("the node listens");
        stream.write_all(self.request("GET", path, "", "").as_bytes()).expect("it reads");
        BufReader::new(stream)
    }

    /// Sends a request; `more`: further lines of its head.
    #[must_use]
    pub fn send(&self, method: &str, path: &str, more: &str, body: &str) -> Got {
        let request = self.request(method, path, more, body);
        let (status, head, body) = self
            .node
            .node
            .run(|| exchange_text(&mut TcpStream::connect(LISTEN).expect("the node listens"), request.as_bytes()))
            .unwrap_or_else(|e| panic!("{method} {path}: {e}"));
        Got { status, head, body }
    }

    /// Asks for a page.
    #[must_use]
    pub fn get(&self, path: &str) -> Got {
        self.send("GET", path, "", "")
    }

    /// Sends a form as a page of ours does.
    #[must_use]
    pub fn post(&self, path: &str, fields: &str) -> Got {
        let token = self.get("/").form_token().to_owned();
        self.send("POST", path, "sec-fetch-site: same-origin\r\n", &format!("form_token={token}&{fields}"))
    }
}

/// Somebody who tries to log in, and the answer.
#[must_use]
pub fn log_in<'a>(node: &'a Managed, name: &str, password: &str) -> (Visitor<'a>, Got) {
    let mut visitor = Visitor { node, cookie: None };
    let form = format!("name={name}&password={}&next=/console/audit", password.replace(' ', "+"));
    let got = visitor.send("POST", "/console/login", "", &form);
    visitor.cookie = got.header("set-cookie").and_then(|c| Some(c.split(';').next()?.to_owned()));
    (visitor, got)
}

/// Somebody who has logged in.
#[must_use]
pub fn as_somebody<'a>(node: &'a Managed, name: &str) -> Visitor<'a> {
    let (visitor, got) = log_in(node, name, PASSWORD);
    assert!(got.status == 303 && got.header("location") == Some("/console/audit"), "{}", got.head);
    visitor
}
