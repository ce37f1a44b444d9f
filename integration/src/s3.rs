//! A real S3 server on loopback: Ceph's RADOS gateway, in memory. One for all tests of a run.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use flowlog_model::S3Options;
use object_store::{ObjectStore as _, ObjectStoreExt as _, aws::AmazonS3Builder};

use crate::{
    net::{Netns, address, sh},
    traffic,
};

const ACCESS: &str = "AKTEST";
const SECRET: &str = "SKTEST";
const PORT: u16 = 17_480;
const PATIENCE: Duration = Duration::from_mins(2);

/// How much of what a daemon printed is told when it does not come up: the reason is in the last lines.
const LAST_WORDS_LINES: usize = 20;

/// A running server. It is ended with the test process: its daemons ask the kernel to be.
pub struct Server {
    dir: tempfile::TempDir,
    _daemons: [Daemon; 3],
    buckets: AtomicU32,
}

/// The server, started on first use.
///
/// # Panics
/// With what the server says, if it does not start: each test with the same words, and without another wait.
pub fn server() -> &'static Server {
    static SERVER: OnceLock<Result<Server, String>> = OnceLock::new();
    let server = SERVER.get_or_init(|| {
        let (sender, started) = std::sync::mpsc::channel();
        // The daemons die with the *thread* that started them (prctl(2)), so that one must last.
        std::thread::spawn(move || {
            let _ = sender.send(Server::start());
            loop {
                std::thread::park();
            }
        });
        started.recv().expect("starter").map_err(|error| format!("{error:#}"))
    });
    server.as_ref().unwrap_or_else(|error| panic!("the S3 server of the tests does not run: {error}"))
}

const CONF: &str = "\
[global]
fsid = FSID
mon host = [v2:127.0.0.1:13301,v1:127.0.0.1:16790]
keyring = DIR/keyring
run dir = DIR/run
admin socket = DIR/run/$name.$pid.asok
log file = DIR/$name.log
public addr = 127.0.0.1
cluster addr = 127.0.0.1
ms bind ipv6 = false
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pgp num = 1
osd pool default pg autoscale mode = off
mon allow pool size one = true
mon max pg per osd = 1000
auth allow insecure global id reclaim = false
osd objectstore = memstore
memstore device bytes = 2147483648
osd crush chooseleaf type = 0
mon data = DIR/mon
mon data avail crit = 0
mon data avail warn = 0
osd data = DIR/osd
osd class load list = *
osd class default list = *
[client.rgw]
rgw frontends = beast endpoint=127.0.0.1:PORT
rgw data = DIR
keyring = DIR/keyring
";

impl Server {
    fn start() -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let d = dir.path().display().to_string();
        let uuid = || fs::read_to_string("/proc/sys/kernel/random/uuid").map(|s| s.trim().to_owned());
        for sub in ["mon", "osd", "run"] {
            fs::create_dir(dir.path().join(sub))?;
        }
        let fsid = uuid()?;
        let osd = uuid()?;
        let conf = CONF.replace("FSID", &fsid).replace("DIR", &d).replace("PORT", &PORT.to_string());
        let c = format!("{d}/ceph.conf");
        fs::write(&c, conf)?;
        let all = ["mon", "allow *", "osd", "allow *", "mgr", "allow *"];
        for (name, caps) in
            [("mon.", &all[..2]), ("client.admin", &all[..]), ("client.rgw", &all[..4]), ("osd.0", &all[..4])]
        {
            let mut tool = Command::new("ceph-authtool");
            tool.arg("--create-keyring").arg(format!("{d}/{name}key")).args(["--gen-key", "-n", name]);
            for pair in caps.chunks(2) {
                tool.args(["--cap", pair[0], pair[1]]);
            }
            quiet(&mut tool)?;
            let key = fs::read_to_string(format!("{d}/{name}key"))?;
            let keyring = fs::read_to_string(format!("{d}/keyring")).unwrap_or_default();
            fs::write(format!("{d}/keyring"), format!("{keyring}{key}\n"))?;
        }
        let addresses = "[v2:127.0.0.1:13301,v1:127.0.0.1:16790]";
        sh(&format!("monmaptool --create --clobber --fsid {fsid} --addv a {addresses} {d}/monmap"))?;
        sh(&format!("ceph-mon -c {c} -i a --mkfs --monmap {d}/monmap --keyring {d}/keyring"))?;
        let mut mon = Daemon::start(&dir, "mon", &["ceph-mon", "-c", &c, "-i", "a", "-f"])?;
        mon.until(|| sh(&format!("timeout 2 ceph -c {c} mon stat")).is_ok())?;
        sh(&format!("ceph -c {c} osd new {osd}"))?;
        quiet(Command::new("ceph-osd").args(["-c", &c, "-i", "0", "--mkfs", "--osd-uuid", &osd]))?;
        sh(&format!("ceph -c {c} osd crush add osd.0 1.0 host=h root=default"))?;
        let mut osd = Daemon::start(&dir, "osd", &["ceph-osd", "-c", &c, "-i", "0", "-f"])?;
        osd.until(|| sh(&format!("ceph -c {c} osd stat")).is_ok_and(|s| s.contains("1 up")))?;
        sh(&format!(
            "radosgw-admin -c {c} user create --uid=flow --display-name=flow --access-key={ACCESS} --secret={SECRET}"
        ))?;
        let mut rgw = Daemon::start(&dir, "rgw", &["radosgw", "-c", &c, "-n", "client.rgw", "-f"])?;
        rgw.until(|| std::net::TcpStream::connect(("127.0.0.1", PORT)).is_ok())?;
        Ok(Self { dir, _daemons: [mon, osd, rgw], buckets: AtomicU32::new(0) })
    }

    /// A fresh bucket.
    ///
    /// # Panics
    /// If the server does not make it.
    pub fn new_bucket(&self) -> String {
        let name = format!("flows-{}", self.buckets.fetch_add(1, Ordering::Relaxed));
        // object_store makes no buckets; the second Parquet reader does.
        let make = format!(
            "import pyarrow.fs as f; f.S3FileSystem(access_key='{ACCESS}', secret_key='{SECRET}', region='us-east-1', \
             endpoint_override='127.0.0.1:{PORT}', scheme='http', allow_bucket_creation=True).create_dir('{name}')"
        );
        python(&make);
        name
    }

    /// A user of the server who owns a fresh bucket, and lets the agent's user put objects there.
    ///
    /// # Panics
    /// If the server refuses.
    pub fn new_owner(&self) -> Owner {
        let n = self.buckets.fetch_add(1, Ordering::Relaxed);
        let owner = Owner { user: format!("owner-{n}"), bucket: format!("owned-{n}") };
        let conf = self.dir.path().join("ceph.conf");
        let Owner { user, bucket } = &owner;
        sh(&format!(
            "radosgw-admin -c {} user create --uid={user} --display-name={user} --access-key={user} --secret={user}",
            conf.display()
        ))
        .expect("a user");
        let _ = owner.asks(&format!(
            "s3.create_bucket(Bucket='{bucket}')\n\
             allow = {{'Effect': 'Allow', 'Principal': {{'AWS': 'arn:aws:iam:::user/flow'}}, 'Resource': 'arn:aws:s3:::{bucket}/*',\n\
              'Action': ['s3:PutObject', 's3:PutObjectAcl', 's3:AbortMultipartUpload']}}\n\
             s3.put_bucket_policy(Bucket='{bucket}', Policy=json.dumps({{'Version': '2012-10-17', 'Statement': [allow]}}))"
        ));
        owner
    }

    /// Options that reach the server.
    pub fn options(&self) -> S3Options {
        self.options_with(ACCESS, SECRET)
    }

    /// Options with other credentials, in a file of their own.
    ///
    /// # Panics
    /// If the file cannot be written.
    pub fn options_with(&self, access: &str, secret: &str) -> S3Options {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let file = self.dir.path().join(format!("credentials-{}", NEXT.fetch_add(1, Ordering::Relaxed)));
        self.write_credentials(&file, access, secret);
        S3Options {
            endpoint: Some(format!("http://127.0.0.1:{PORT}")),
            region: Some("us-east-1".to_owned()),
            path_style: true,
            allow_http: true,
            credentials_file: Some(file),
            acl: true,
        }
    }

    /// Writes a credentials file in the AWS format.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn write_credentials(&self, file: &Path, access: &str, secret: &str) {
        let text = format!("[default]\naws_access_key_id = {access}\naws_secret_access_key = {secret}\n");
        fs::write(file, text).expect("write");
        fs::set_permissions(file, fs::Permissions::from_mode(0o600)).expect("chmod");
    }

    fn store(bucket: &str) -> impl object_store::ObjectStore {
        AmazonS3Builder::new()
            .with_endpoint(format!("http://127.0.0.1:{PORT}"))
            .with_region("us-east-1")
            .with_allow_http(true)
            .with_bucket_name(bucket)
            .with_access_key_id(ACCESS)
            .with_secret_access_key(SECRET)
            .build()
            .expect("store")
    }

    /// All keys of a bucket.
    ///
    /// # Panics
    /// If the server does not list them.
    pub fn keys(&self, bucket: &str) -> Vec<String> {
        let store = Self::store(bucket);
        runtime().block_on(async {
            let listed = store.list_with_delimiter(None).await.expect("list");
            let mut keys = Vec::new();
            let mut todo = listed.common_prefixes;
            keys.extend(listed.objects.into_iter().map(|o| o.location.to_string()));
            while let Some(prefix) = todo.pop() {
                let listed = store.list_with_delimiter(Some(&prefix)).await.expect("list");
                todo.extend(listed.common_prefixes);
                keys.extend(listed.objects.into_iter().map(|o| o.location.to_string()));
            }
            keys
        })
    }

    /// An object's bytes.
    ///
    /// # Panics
    /// If it is not there.
    pub fn get(&self, bucket: &str, key: &str) -> Vec<u8> {
        let store = Self::store(bucket);
        runtime().block_on(async { store.get(&key.into()).await.expect("get").bytes().await.expect("body").to_vec() })
    }
}

/// See [`Server::new_owner`]. Asks with the cloud's own client.
pub struct Owner {
    user: String,
    pub bucket: String,
}

impl Owner {
    /// Runs lines of Python with its `s3`; returns what they print.
    ///
    /// # Panics
    /// If they fail.
    #[must_use]
    pub fn asks(&self, lines: &str) -> String {
        let user = &self.user;
        let client = format!(
            "import boto3, json\ns3 = boto3.client('s3', endpoint_url='http://127.0.0.1:{PORT}', region_name='us-east-1', \
             aws_access_key_id='{user}', aws_secret_access_key='{user}')\n"
        );
        python(&(client + lines)).trim().to_owned()
    }

    /// What it gets when it asks for an object: the number of bytes, or the error's code.
    #[must_use]
    pub fn reads(&self, bucket: &str, key: &str) -> String {
        self.asks(&format!(
            "try:\n print(len(s3.get_object(Bucket='{bucket}', Key='{key}')['Body'].read()))\n\
             except s3.exceptions.ClientError as e:\n print(e.response['Error']['Code'])"
        ))
    }
}

/// Runs Python with the packages of `cargo xtask setup`; returns what it prints.
fn python(lines: &str) -> String {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name(".tools").join("python/bin/python");
    let out = Command::new(python).args(["-c", lines]).output().expect("run `cargo xtask setup`");
    assert!(out.status.success(), "{lines}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime")
}

fn quiet(command: &mut Command) -> anyhow::Result<()> {
    let out = command.output().with_context(|| format!("{command:?}"))?;
    ensure!(out.status.success(), "{command:?}: {}", String::from_utf8_lossy(&out.stderr));
    Ok(())
}

/// One of the server's processes. What it prints and logs is in the server's directory.
struct Daemon {
    name: &'static str,
    dir: PathBuf,
    child: Child,
}

impl Daemon {
    fn start(dir: &tempfile::TempDir, name: &'static str, args: &[&str]) -> anyhow::Result<Self> {
        let printed = fs::File::create(dir.path().join(format!("{name}.out")))?;
        // setpriv makes the daemon die with the test process, however that ends.
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL"])
            .args(args)
            .stdin(Stdio::null())
            .stdout(printed.try_clone()?)
            .stderr(printed)
            .spawn()
            .with_context(|| name.to_owned())?;
        Ok(Self { name, dir: dir.path().to_owned(), child })
    }

    /// Waits until it serves. One that ended is not waited for, and either way its last words are told.
    fn until(&mut self, ready: impl Fn() -> bool) -> anyhow::Result<()> {
        let start = Instant::now();
        while !ready() {
            let ended = self.child.try_wait()?;
            if ended.is_some() || start.elapsed() > PATIENCE {
                let why = ended.map_or("does not answer".to_owned(), |status| status.to_string());
                anyhow::bail!("{}: {why}; its last words:\n{}", self.name, self.last_words());
            }
            // A daemon without a readiness event: look again.
            std::thread::sleep(Duration::from_millis(200));
        }
        Ok(())
    }

    fn last_words(&self) -> String {
        let mut words = fs::read_to_string(self.dir.join(format!("{}.out", self.name))).unwrap_or_default();
        for log in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            let file = log.file_name().to_string_lossy().into_owned();
            if file.strip_suffix(".log").is_some_and(|stem| stem.contains(self.name)) {
                words += &String::from_utf8_lossy(&fs::read(log.path()).unwrap_or_default());
            }
        }
        let lines: Vec<&str> = words.lines().collect();
        lines[lines.len().saturating_sub(LAST_WORDS_LINES)..].join("\n")
    }
}

/// A cable from the namespace the tests run in to one of its own, for an agent that must reach a server on loopback.
pub struct CableToHere {
    pub interface: String,
    far: Netns,
}

impl CableToHere {
    /// Plugs it in.
    ///
    /// # Errors
    /// Without root.
    pub fn new() -> anyhow::Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let far = Netns::new("far")?;
        // At most 15 bytes.
        let interface = format!("fl{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        sh(&format!("ip link add {interface} type veth peer name eth0 netns {}", far.name()))?;
        sh(&format!("ip link set {interface} up"))?;
        far.exec("ip link set eth0 up")?;
        address(&far, "eth0", "10.99.0.2/24")?;
        far.exec("ip neigh replace 10.99.0.1 lladdr 02:00:00:00:00:01 dev eth0 nud permanent")?;
        Ok(Self { interface, far })
    }

    /// Sends UDP packets to port 9 of an address that nobody has.
    ///
    /// # Errors
    /// If they cannot be sent.
    pub fn send(&self, packets: usize) -> anyhow::Result<()> {
        self.far.run(|| traffic::udp("10.99.0.1:9", packets, 50)).map(drop)
    }
}
