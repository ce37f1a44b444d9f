//! The console without a browser: who gets which page, what a form must have, how long a session lives. The witness is what is on the
//! wire.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{BufRead as _, Read as _},
    os::unix::net::UnixStream,
    time::Duration,
};

use integration::{
    claims::until,
    http::exchange_text,
    managed::{CONTRACT, LISTEN, Managed, NAT, NIC, NLB, OTHERS_NIC, PASSWORD, as_user},
    visitor::{Got, Visitor, as_somebody, log_in},
};
use serde_json::json;

#[test]
fn pages_have_nothing_of_another_contract_and_lead_nowhere_else() {
    let node = Managed::new("no_pin = true").unwrap();
    let _agent = node.start().unwrap();
    let ours = node.draft(NIC, "secretname", "flows");
    let strange = node.draft(OTHERS_NIC, "theirs", "other");
    // Every page that can be reached by links, with all its fragments.
    for (name, own, hidden) in
        [("ann", "secretname", vec!["theirs", OTHERS_NIC]), ("mal", "theirs", vec!["secretname", NIC, NAT, CONTRACT])]
    {
        let visitor = as_somebody(&node, name);
        let mut seen = BTreeMap::new();
        let mut todo = BTreeSet::from(["/".to_owned(), "/console/provision".to_owned(), "/console/audit".to_owned()]);
        while let Some(path) = todo.pop_first() {
            if seen.contains_key(&path) || path.contains("/assets/") {
                continue;
            }
            let got = visitor.get(&path);
            assert!(got.status == 200 || got.status == 303, "{path}: {}", got.head);
            for words in &hidden {
                assert!(!got.body.contains(words), "{name} sees `{words}` at {path}");
            }
            todo.extend(got.links());
            seen.insert(path, got.body);
        }
        assert!(seen.len() > 6 && seen.values().any(|page| page.contains(own)), "{name}: {:?}", seen.keys());
    }
    // What is of the other contract is answered as what does not exist, whatever is asked of it.
    let mal = as_somebody(&node, "mal");
    let absent = "00000000-0000-4000-8000-0000000000ee";
    let same = |got: Got, id: &str| (got.status, got.body.replace(id, "ID"));
    for (path, id) in [
        ("/console/resources/ID", NIC),
        ("/console/flowlogs/ID", ours.as_str()),
        ("/console/flowlogs/ID/delete", ours.as_str()),
        ("/console/live/flowlogs/ID", ours.as_str()),
        ("/console/live/flowlogs/ID/history", ours.as_str()),
        ("/console/live/flowlogs/ID/watch", ours.as_str()),
        ("/console/requests/ID", ours.as_str()),
    ] {
        let (theirs, nothing) = (mal.get(&path.replace("ID", id)), mal.get(&path.replace("ID", absent)));
        assert_eq!(theirs.status, 404, "{path}");
        assert_eq!(same(theirs, id), same(nothing, absent), "{path}");
    }
    for (path, fields) in [
        (format!("/console/resources/{NIC}/flowlogs"), "name=x&direction=INGRESS&action=ALL&bucket=flows".to_owned()),
        (format!("/console/flowlogs/{ours}/validate"), String::new()),
        (format!("/console/flowlogs/{ours}/change"), "name=x&direction=INGRESS&action=ALL&bucket=flows".to_owned()),
        (format!("/console/flowlogs/{ours}/rename"), "name=x".to_owned()),
        (format!("/console/flowlogs/{ours}/delete"), String::new()),
        ("/console/provision".to_owned(), format!("flow_log={ours}")),
    ] {
        assert_eq!(mal.post(&path, &fields).status, 404, "{path}");
    }
    assert_eq!(mal.get("/console/node").status, 404);
    assert_eq!(node.summary(&ours)["properties"]["name"], "secretname");
    assert_eq!(node.summary(&strange)["properties"]["name"], "theirs");
}

#[test]
fn who_has_no_privilege_reads_and_has_nothing_to_press() {
    let node = Managed::new("no_pin = true").unwrap();
    let _agent = node.start().unwrap();
    let id = node.draft(NIC, "web", "flows");
    let eve = as_somebody(&node, "eve");
    for path in
        [format!("/console/resources/{NIC}"), format!("/console/resources/{NAT}"), "/console/provision".to_owned()]
    {
        let got = eve.get(&path);
        assert_eq!(got.status, 200, "{path}");
        let forms: Vec<&str> =
            got.body.split("method=\"post\" action=\"").skip(1).filter_map(|f| f.split('"').next()).collect();
        assert!(forms.iter().all(|f| ["/console/logout", "/console/provision"].contains(f)), "{path}: {forms:?}");
        assert!(got.body.contains("privilege to create flow logs") && !got.body.contains("Delete"), "{path}");
    }
    assert_eq!(eve.get(&format!("/console/flowlogs/{id}/delete")).status, 403);
    assert!(!eve.get("/").body.contains("/console/audit"));
    assert_eq!(eve.get("/console/audit").status, 403);
    for (path, fields) in [
        (format!("/console/resources/{NAT}/flowlogs"), "name=x&direction=INGRESS&action=ALL&bucket=flows".to_owned()),
        (format!("/console/flowlogs/{id}/change"), "name=x&direction=INGRESS&action=ALL&bucket=flows".to_owned()),
        (format!("/console/flowlogs/{id}/delete"), String::new()),
        ("/console/provision".to_owned(), format!("flow_log={id}")),
    ] {
        let got = eve.post(&path, &fields);
        assert!(got.status == 403 && got.body.contains("needs the privilege"), "{path}: {} {}", got.head, got.body);
    }
    // Joe may delete, and not change.
    let joe = as_somebody(&node, "joe");
    let got = joe.get(&format!("/console/resources/{NIC}"));
    assert!(got.body.contains(&format!("/console/flowlogs/{id}/delete")) && !got.body.contains("Save and check"));
    assert_eq!(joe.post(&format!("/console/flowlogs/{id}/delete"), "").status, 303);
}

#[test]
fn a_form_that_is_not_ours_changes_nothing() {
    let node = Managed::new("no_pin = true").unwrap();
    let _agent = node.start().unwrap();
    let id = node.draft(NIC, "web", "flows");
    let ann = as_somebody(&node, "ann");
    let token = ann.get("/").form_token().to_owned();
    let strange = as_somebody(&node, "bob").get("/").form_token().to_owned();
    let path = format!("/console/flowlogs/{id}/rename");
    let rename =
        |more: &str, token: &str| ann.send("POST", &path, more, &format!("form_token={token}&name=stolen")).status;
    for (more, token) in [
        ("", ""),
        ("", "guess"),
        ("", strange.as_str()),
        ("sec-fetch-site: cross-site\r\n", &token),
        ("sec-fetch-site: same-site\r\n", &token),
        ("origin: https://evil.example\r\n", &token),
        ("origin: null\r\n", &token),
    ] {
        assert_eq!(rename(more, token), 403, "{more} {token}");
    }
    // Without the cookie there is nobody.
    let nobody = Visitor { node: &node, cookie: None };
    let got = nobody.send("POST", &path, "", &format!("form_token={token}&name=stolen"));
    assert!(got.status == 303 && got.header("location") == Some("/console/login"), "{}", got.head);
    assert_eq!(node.summary(&id)["properties"]["name"], "web");
    // A cookie of the session alone is no way into the API.
    let api = ann.get("/flowlog/v1/inventory");
    assert_eq!(api.status, 401);
    assert_eq!(rename(&format!("origin: http://{LISTEN}\r\n"), &token), 303);
    assert_eq!(node.summary(&id)["properties"]["name"], "stolen");
    // Another site cannot log somebody in as somebody else, either.
    let form = format!("name=mal&password={}", PASSWORD.replace(' ', "+"));
    assert_eq!(nobody.send("POST", "/console/login", "sec-fetch-site: cross-site\r\n", &form).status, 403);
}

#[test]
fn a_session_ends_with_a_logout_and_when_the_principals_change() {
    let node = Managed::new("no_pin = true").unwrap();
    let _agent = node.start().unwrap();
    let ann = as_somebody(&node, "ann");
    let is_in = |visitor: &Visitor| visitor.get("/").status == 200;
    assert!(is_in(&ann));
    let got = ann.post("/console/logout", "");
    assert!(got.header("set-cookie").unwrap().contains("Max-Age=0") && !is_in(&ann));
    // To the page that was asked for, after a login; a fragment is no place for one.
    let got = ann.get("/console/audit");
    assert_eq!((got.status, got.header("location")), (303, Some("/console/login?next=%2Fconsole%2Faudit")));
    let got = ann.get("/console/live/tree");
    assert_eq!((got.status, got.header("hx-redirect")), (401, Some("/console/login")));
    let page = "hx-current-url: https://node:8443/console/audit\r\n";
    let got = ann.send("GET", "/console/live/tree", page, "");
    assert_eq!(got.header("hx-redirect"), Some("/console/login?next=%2Fconsole%2Faudit"));
    // Its cookie is still there: it is told why it is asked again. Others are not.
    assert!(ann.get("/console/login").body.contains("Your session is over"));
    assert!(!Visitor { node: &node, cookie: None }.get("/console/login").body.contains("is over"));
    let bob = as_somebody(&node, "bob");
    let principals = fs::read_to_string(node.path("principals.toml")).unwrap();
    node.write("principals.toml", &format!("# read again\n{principals}")).unwrap();
    // inotify says so to the agent, and nobody to us.
    let over = (0..600).any(|_| {
        std::thread::sleep(Duration::from_millis(50));
        !is_in(&bob)
    });
    assert!(over, "a session outlived its principals");
    let (_, got) = log_in(&node, "bob", "wrong");
    assert!(got.status == 401 && got.header("set-cookie").is_none() && got.header("www-authenticate").is_none());
    // A place that is not ours is not where a login leads.
    let nobody = Visitor { node: &node, cookie: None };
    let form = format!("name=bob&password={}&next=//evil.example/", PASSWORD.replace(' ', "+"));
    assert_eq!(nobody.send("POST", "/console/login", "", &form).header("location"), Some("/"));
    // Guesses are counted with those at the API: 20 at once, then one a second. Two are hashed at a time.
    let guesses = || (0..100).any(|_| log_in(&node, "ann", "guess").1.status == 429);
    let refused = std::thread::scope(|scope| {
        let guessing: Vec<_> = (0..4).map(|_| scope.spawn(guesses)).collect();
        guessing.into_iter().map(|g| g.join().unwrap()).collect::<Vec<_>>()
    });
    assert_eq!(refused, [true; 4]);
    assert_eq!(node.ask_as("ann", "GET", "/cloudapi/v6/requests", None).status, 429);
}

#[test]
fn a_stream_of_live_flows_ends_with_its_session() {
    let node = Managed::new("no_pin = true").unwrap();
    let _agent = node.start().unwrap();
    let id = node.draft(NIC, "web", "flows");
    let ann = as_somebody(&node, "ann");
    let path = format!("/console/live/flowlogs/{id}/watch");
    let mut stream = ann.stream(&path);
    let mut head = String::new();
    while !head.contains("event: sums") {
        assert!(stream.read_line(&mut head).unwrap() > 0, "it ended by itself: {head}");
    }
    assert!(head.starts_with("HTTP/1.1 200") && head.contains("content-type: text/event-stream"), "{head}");
    assert_eq!(ann.get(&path.replace("/watch", "")).status, 200);
    // So does one of a flow log that is deleted.
    let other = node.draft(NAT, "other", "flows");
    let mut deleted = ann.stream(&format!("/console/live/flowlogs/{other}/watch"));
    assert_eq!(ann.post(&format!("/console/flowlogs/{other}/delete"), "").status, 303);
    deleted.read_to_string(&mut String::new()).unwrap();
    assert_eq!(ann.post("/console/logout", "").status, 303);
    // Read to its end, which comes when the session is over.
    stream.read_to_string(&mut head).unwrap();
    assert_eq!(ann.get(&path).status, 401);
}

#[test]
fn as_many_pages_as_a_contract_may_open_look_at_live_flows_and_each_has_its_sums() {
    const PAGES: usize = 4;
    let node = Managed::new("no_pin = true").unwrap();
    let _agent = node.start().unwrap();
    let id = node.draft(NIC, "web", "flows");
    let ann = as_somebody(&node, "ann");
    let path = format!("/console/live/flowlogs/{id}/watch");
    // Their number is that of the streams: looking at the sums takes no place of its own.
    let mut open: Vec<_> = (0..PAGES).map(|_| ann.stream(&path)).collect();
    for page in &mut open {
        let sums = page.lines().map(Result::unwrap).find(|line| line.starts_with("data: <table"));
        assert!(sums.unwrap().contains("packets rejected"));
    }
    let refused = ann.stream(&path).lines().map(Result::unwrap).find(|line| line.starts_with("data: ")).unwrap();
    assert!(refused.contains("observers of this contract are looking"), "{refused}");
}

#[test]
fn the_page_of_a_flow_log_says_since_when_it_captures_what_landed_last_and_how_the_books_stand() {
    let node = Managed::new("no_pin = true\n[flow_log_defaults]\nwindow = 1\n").unwrap();
    let _agent = node.start().unwrap();
    let id = node.draft(NIC, "web", "flows");
    let ann = as_somebody(&node, "ann");
    let page = || ann.get(&format!("/console/live/flowlogs/{id}")).body;
    assert!(!page().contains("Capturing since"), "a draft captures nothing");
    assert_eq!(node.finish(&node.ask("POST", "/flowlog/v1/provision", Some(&json!({"flow_logs": [id]})))).0, "DONE");
    let seen = (0..300).map(|_| page()).find(|page| {
        // One principal may ask 50 times a second.
        std::thread::sleep(Duration::from_millis(100));
        page.contains("last object") && page.contains("Books of the last window")
    });
    let seen = seen.expect("nothing has landed");
    for words in [
        "Capturing since <time",
        ", delivering; last object ",
        " s ago, ",
        " KiB",
        "Books of the last window, <time",
        ", difference 0",
    ] {
        assert!(seen.contains(words), "{words}: {seen}");
    }
    // The same in the API, and as its document says.
    let summary = node.summary(&id);
    let capture = &summary["captures"][0];
    let key = capture["delivery"]["last_object"]["key"].as_str().unwrap();
    let file = fs::metadata(node.bucket("flows").join(key)).unwrap();
    assert_eq!(capture["delivery"]["last_object"]["bytes"], file.len());
    assert!(
        capture["since_secs"].is_i64()
            && summary["lag_secs"].is_i64()
            && capture["last_window"]["difference_packets"] == 0
    );
    let document = node.ask("GET", "/openapi.json", None).body;
    let path = &document["paths"]["/flowlog/v1/flowlogs/{flowlog}"]["get"]["responses"]["200"];
    assert_eq!(path["content"]["application/json"]["schema"]["$ref"], "#/components/schemas/FlowLogSummary");
    let schemas = &document["components"]["schemas"];
    assert!(
        schemas["RuleStatus"].to_string().contains("since_secs")
            && schemas["DeliveredObject"]["properties"]["bytes"].is_object()
    );
    let (code, shown, err) = node.command(&["rule", "show", "web"]).unwrap();
    assert_eq!(code, Some(0), "{err}");
    assert!(shown.contains("capturing since 20") && shown.contains(" seen = "), "{shown}");
}

#[test]
fn a_flow_log_that_waits_does_not_say_that_it_captures() {
    let node = Managed::new("no_pin = true").unwrap();
    let _agent = node.start().unwrap();
    let id = node.draft(NIC, "web", "flows");
    assert_eq!(node.finish(&node.ask("POST", "/flowlog/v1/provision", Some(&json!({"flow_logs": [id]})))).0, "DONE");
    let ann = as_somebody(&node, "ann");
    let page = || ann.get(&format!("/console/live/flowlogs/{id}")).body;
    assert!(page().contains("Capturing since"));
    node.node.exec("ip link del tap0").unwrap();
    until("waiting", || node.summary(&id)["mark"] == "yellow");
    let page = page();
    assert!(page.contains("Waiting to capture") && !page.contains("Capturing"), "{page}");
    assert!(!page.contains("first object comes"), "nothing comes of nothing: {page}");
}

#[test]
fn what_is_wrong_is_said_at_its_field_all_at_once_and_what_was_typed_stays() {
    let node = Managed::new("no_pin = true").unwrap();
    let _agent = node.start().unwrap();
    let ann = as_somebody(&node, "ann");
    // A draft keeps what is wrong; a wrong name hides nothing of what is wrong with the bucket.
    let add = |resource: &str, name: &str, bucket: &str| {
        let fields = format!("name={name}&direction=INGRESS&action=ALL&bucket={bucket}");
        ann.post(&format!("/console/resources/{resource}/flowlogs"), &fields)
    };
    assert_eq!(add(NIC, "a+b", "nobodys").status, 303);
    let page = ann.get(&format!("/console/resources/{NIC}")).body;
    assert_eq!(page.matches("aria-invalid=\"true\"").count(), 2, "{page}");
    assert!(page.contains("1 to 63 ASCII") && page.contains("does not exist, is not contract"), "{page}");
    // What not even a draft keeps is in the form again.
    let long = "b".repeat(2_000);
    let refused = add(NLB, "front", &long);
    assert_eq!(refused.status, 422);
    assert!(refused.body.contains("value=\"front\"") && refused.body.contains(&long), "{}", refused.body);
    assert!(refused.body.contains("must be at most 1024 bytes"), "{}", refused.body);
    // Also beside a draft, and with all that is wrong, not only what is too long.
    let refused = add(NIC, &long, "nobodys%21");
    assert_eq!(refused.status, 422);
    assert!(refused.body.contains("must be at most 1024 bytes") && refused.body.contains("value=\"nobodys!\""));
    assert_eq!(refused.body.split("One more").nth(1).unwrap().matches("aria-invalid=\"true\"").count(), 2);
    // So is the name that an active one cannot have.
    let id = node.draft(NAT, "edge", "flows");
    assert_eq!(node.finish(&node.ask("POST", "/flowlog/v1/provision", Some(&json!({"flow_logs": [id]})))).0, "DONE");
    let refused = ann.post(&format!("/console/flowlogs/{id}/rename"), "name=a+b");
    assert_eq!(refused.status, 422);
    assert!(
        refused.body.contains("value=\"a b\"") && refused.body.contains("aria-invalid=\"true\""),
        "{}",
        refused.body
    );
    assert!(refused.body.contains("1 to 63 ASCII") && !refused.body.contains("properties"), "{}", refused.body);
    assert_eq!(node.summary(&id)["properties"]["name"], "edge");
    // Whoever may not check is told so.
    let draft = node.draft(NLB, "front", "flows");
    let refused = as_somebody(&node, "joe").post(&format!("/console/flowlogs/{draft}/validate"), "");
    assert!(refused.status == 403 && refused.body.contains("needs the privilege"), "{}", refused.body);
    // An address with an id that is none is one of nothing.
    for path in ["/console/resources/nic-1", "/console/flowlogs/web", "/console/requests/7"] {
        let got = ann.get(path);
        assert!(got.status == 404 && got.body.contains("There is no such thing here"), "{path}: {}", got.body);
    }
}

#[test]
fn every_answer_says_what_a_browser_may_do_with_it() {
    let node = Managed::new("no_pin = true").unwrap();
    let _agent = node.start().unwrap();
    let (ann, got) = log_in(&node, "ann", PASSWORD);
    let cookie = got.header("set-cookie").unwrap();
    assert!(
        cookie.contains("; HttpOnly") && cookie.contains("; SameSite=Strict") && cookie.contains("; Path=/"),
        "{cookie}"
    );
    assert!(!cookie.contains("Secure"), "on loopback without TLS no browser would keep it: {cookie}");
    let page = ann.get("/");
    for (name, words) in [
        (
            "content-security-policy",
            "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; object-src 'none'",
        ),
        ("x-content-type-options", "nosniff"),
        ("referrer-policy", "no-referrer"),
        ("cache-control", "no-store"),
    ] {
        for got in [&page, &ann.get("/console/login"), &ann.get("/console/flowlogs/x"), &ann.get("/console/live/tree")]
        {
            assert_eq!(got.header(name), Some(words), "{}", got.head);
        }
    }
    // Nothing that such a policy would refuse, and nothing from elsewhere.
    let lower = page.body.to_ascii_lowercase();
    assert!(
        !lower.contains(" style=")
            && !lower.contains("<style")
            && !lower.contains(" onclick")
            && !lower.contains("//cdn")
    );
    assert!(lower.split("<script").skip(1).all(|s| s.starts_with(" defer src=\"/console/assets/")));
    let script =
        page.body.split("src=\"").find_map(|s| s.split('"').next().filter(|u| u.contains("console.js"))).unwrap();
    let got = Visitor { node: &node, cookie: None }.get(script);
    assert_eq!(got.header("cache-control"), Some("public, max-age=31536000, immutable"));
    assert_eq!(got.header("content-type"), Some("text/javascript"));
}

#[test]
fn over_tls_the_cookie_is_for_this_host_alone_and_never_sent_in_the_clear() {
    let node = Managed::new("no_pin = true\n").unwrap();
    let config = fs::read_to_string(node.path("flowlog.toml")).unwrap();
    // A proxy in front ends TLS.
    node.write("flowlog.toml", &format!("{config}public_url = 'https://node.example.com'\n")).unwrap();
    let _agent = node.start().unwrap();
    let (ann, got) = log_in(&node, "ann", PASSWORD);
    let cookie = got.header("set-cookie").unwrap();
    assert!(
        cookie.starts_with("__Host-flowlog=") && cookie.contains("; Secure") && !cookie.contains("Domain"),
        "{cookie}"
    );
    assert_eq!(ann.get("/").status, 200);
}

#[test]
fn on_the_socket_the_kernel_says_whose_pages_they_are() {
    let node = Managed::new("no_pin = true").unwrap();
    let _agent = node.start().unwrap();
    fs::set_permissions(node.dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let socket = node.path("agent.sock");
    let get = |path: &str, cookie: &str| {
        let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{cookie}\r\n");
        let (status, head, body) =
            exchange_text(&mut UnixStream::connect(&socket).unwrap(), request.as_bytes()).unwrap();
        Got { status, head, body }
    };
    let root = as_user(0, || get("/console/node", ""));
    assert!(root.status == 200 && root.body.contains("Kernel"), "{}", root.body);
    let cookie = root.header("set-cookie").unwrap().split(';').next().unwrap();
    let cookie = format!("cookie: {cookie}\r\n");
    // Somebody else with the operator's cookie is who the kernel says.
    let ann = as_user(60_001, || get("/", &cookie));
    assert!(ann.body.contains(NIC) && !ann.body.contains(OTHERS_NIC) && ann.header("set-cookie").is_some());
    assert_eq!(as_user(60_001, || get("/console/node", &cookie)).status, 404);
    assert_eq!(as_user(61_000, || get("/", &cookie)).status, 401);
    // A cookie that is of a session on the socket is of no use over TCP.
    let visitor = Visitor { node: &node, cookie: Some(cookie["cookie: ".len()..].trim().to_owned()) };
    assert_eq!(visitor.get("/").status, 303);
}

#[test]
fn names_and_words_of_others_are_text_in_every_page() {
    let node = Managed::new("no_pin = true").unwrap();
    let _agent = node.start().unwrap();
    let script = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>\u{202e}";
    let id = node.draft(NIC, script, script);
    let ann = as_somebody(&node, "ann");
    assert_eq!(ann.post(&format!("/console/flowlogs/{id}/validate"), "").status, 303);
    for path in [
        "/".to_owned(),
        format!("/console/resources/{NIC}"),
        format!("/console/flowlogs/{id}/delete"),
        "/console/provision".to_owned(),
        "/console/audit".to_owned(),
        "/console/live/tree".to_owned(),
        "/?q=%3Cscript%3Ealert(1)".to_owned(),
        "/console/login?next=%22%3E%3Cscript%3E".to_owned(),
    ] {
        let page = ann.get(&path).body;
        assert!(
            !page.contains("<script>") && !page.contains("<img") && !page.contains('\u{202e}')
                || page.contains("value=\"&lt;script"),
            "{path}: {page}"
        );
        assert!(!page.contains("<script>") && !page.contains("<img"), "{path}: {page}");
    }
}
