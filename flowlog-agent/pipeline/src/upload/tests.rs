//! Routes: what is delivered, what is tried again, what is put aside.

use object_store::path::Path;

use super::{
    scripted::{Reply, Scripted, Shelf},
    *,
};

#[test]
fn a_store_is_opened_once_and_again_when_its_options_change() {
    let endpoint = Arc::new(Mutex::new("https://a.example.com"));
    let now = endpoint.clone();
    let stores = Buckets::new(Box::new(move |_| {
        let endpoint = now.lock().expect("no panic").to_owned();
        Some(S3Options { endpoint: Some(endpoint), region: Some("r".to_owned()), ..S3Options::default() })
    }));
    let bucket = Location::Bucket("flows".to_owned());
    let open = || stores.open(&bucket).expect("opens");
    let first = open();
    assert!(Arc::ptr_eq(&first, &open()));
    *endpoint.lock().expect("no panic") = "https://b.example.com";
    assert!(!Arc::ptr_eq(&first, &open()));
}

fn hold(spool: &Spool, key: &str) {
    let bucket = Location::Bucket("flows".to_owned());
    let bytes = b"parquet".to_vec();
    let rows = crate::encode::RowCounts::default();
    spool.hold(&bucket, &crate::encode::Object { key: key.to_owned(), bytes, rows }).expect("hold");
    spool.release_all().expect("release");
}

/// Delivers, in time that passes when everybody waits. Returns what was stored, and what the uploader says.
fn deliver_for<S>(time: Duration, keys: &[&str], script: impl FnOnce(Spool) -> S) -> (Vec<String>, RouteStatus)
where
    S: FnMut(&Path) -> Reply + Send + 'static,
{
    let dir = tempfile::tempdir().expect("tempdir");
    let fs = Arc::new(crate::disk::real::Disk::open(dir.path()).expect("disk"));
    let (spool, _) = Spool::open(fs, crate::spool::Limits::default()).expect("open");
    for key in keys {
        hold(&spool, key);
    }
    let shelf = Shelf::default();
    let store = Scripted::new(&shelf, Box::new(script(spool.clone())));
    let uploader = Uploader::new(spool, Arc::new(move |_| Ok(Arc::new(store.store()))));
    let progress = uploader.progress();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
    let stored = runtime.expect("a runtime").block_on(async {
        let _ = tokio::time::timeout(time, uploader.run(Arc::new(Notify::new()))).await;
        shelf.contents().await.into_iter().map(|(key, _)| key).collect()
    });
    let status = progress.borrow().routes.values().next().expect("a route").clone();
    (stored, status)
}

fn unwanted(key: &Path) -> bool {
    key.as_ref() == "web/x_2"
}

#[test]
fn an_object_that_the_store_does_not_want_holds_back_no_other() {
    let script = |_| |key: &Path| if unwanted(key) { Reply::Unwanted } else { Reply::Stored };
    let (stored, status) = deliver_for(Duration::from_hours(1), &["web/x_1", "web/x_2", "web/x_3"], script);
    assert_eq!(stored, ["web/x_1", "web/x_3"]);
    let last = status.last_object.as_ref().expect("it says which was the last");
    assert!(last.key == "web/x_3" && last.bytes == 7 && last.at_secs > 1_700_000_000, "{last:?}");
    // It was refused beside others once: that is not enough to give it up.
    let error = status.state.error().expect("it says why");
    assert!(status.waiting == 1 && status.quarantined == 0 && error.contains("refuses this object"), "{status:?}");
}

#[test]
fn an_object_that_is_refused_again_and_again_beside_others_is_put_aside() {
    let script = |spool: Spool| {
        let mut refusals = 0;
        move |key: &Path| {
            if !unwanted(key) {
                return Reply::Stored;
            }
            // Windows go on closing.
            refusals += 1;
            hold(&spool, &format!("web/y_{refusals}"));
            Reply::Unwanted
        }
    };
    let (stored, status) = deliver_for(Duration::from_hours(1), &["web/x_2"], script);
    assert!(stored.len() >= 5 && !stored.contains(&"web/x_2".to_owned()), "{stored:?}");
    assert_eq!((status.waiting, status.quarantined, status.state), (0, 1, RouteState::Delivering));
}

#[test]
fn a_store_that_wants_nothing_is_no_reason_to_put_everything_aside() {
    let keys: Vec<String> = (0..20).map(|n| format!("web/x_{n}")).collect();
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    let (stored, status) = deliver_for(Duration::from_hours(1), &keys, |_| |_: &Path| Reply::Unwanted);
    assert!(stored.is_empty() && status.quarantined == 0 && status.waiting == 20, "{status:?}");
}

#[test]
fn a_route_is_a_rule_at_a_store() {
    let of = |key: &str| {
        let entry = Entry { location: Location::Bucket("b".to_owned()), key: key.to_owned(), bytes: 0, made_ns: 0 };
        route(&entry).folder
    };
    assert_eq!(of("team/web/year=2026/month=01/day=01/hour=00/x.parquet"), "team/web");
    assert_eq!(of("web/x.parquet"), "web");
    assert_eq!(of("team/web/x.parquet"), "team/web");
}
