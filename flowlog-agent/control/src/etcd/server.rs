//! A real etcd for unit tests: Debian's, one member on loopback, gone with what is returned.

use std::{
    net::TcpListener,
    process::{Child, Command, Stdio},
    sync::Arc,
};

use super::{
    connection::Etcd,
    options::{EtcdOptions, PREFIX_DEFAULT},
};

/// How long it may take to answer first.
const STARTS_IN: std::time::Duration = std::time::Duration::from_secs(20);

/// See the module's head.
pub(crate) struct Server {
    child: Child,
    url: String,
    _dir: tempfile::TempDir,
}

impl Server {
    /// Starts one and waits until it answers.
    pub(crate) async fn start() -> Self {
        let dir = tempfile::tempdir().expect("tempdir");
        let free = || TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port");
        let [url, peer] = [free(), free()].map(|address| format!("http://{address}"));
        let child = Command::new("etcd")
            .args(["--data-dir".as_ref(), dir.path().as_os_str()])
            .args(["--listen-client-urls", &url, "--advertise-client-urls", &url, "--listen-peer-urls", &peer])
            .args(["--initial-advertise-peer-urls", &peer, "--initial-cluster", &format!("default={peer}")])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("etcd: `cargo xtask setup` installs it");
        let server = Self { child, url, _dir: dir };
        let is_up = async { while server.etcd().get("x", etcd_client::GetOptions::new()).await.is_err() {} };
        tokio::time::timeout(STARTS_IN, is_up).await.expect("etcd answers");
        server
    }

    /// Another client of it.
    pub(crate) fn etcd(&self) -> Arc<Etcd> {
        let prefix = PREFIX_DEFAULT.to_owned();
        let endpoints = vec![self.url.clone()];
        Etcd::new(EtcdOptions { endpoints, ca: None, identity: None, credentials: None, prefix })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
