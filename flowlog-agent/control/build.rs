//! Packs the console's assets: compressed, and named by what is in them, so that browsers may keep them for ever.

use std::{env, error::Error, fmt::Write as _, fs, io::Write as _, path::Path};

use flate2::{Compression, write::GzEncoder};
use sha2::{Digest as _, Sha256};

/// Below `assets`: each file, and its media type.
const FILES: [(&str, &str); 6] = [
    ("console.css", "text/css"),
    ("console.js", "text/javascript"),
    ("icon.svg", "image/svg+xml"),
    ("vendor/htmx.min.js", "text/javascript"),
    ("vendor/uPlot.iife.min.js", "text/javascript"),
    ("vendor/uPlot.min.css", "text/css"),
];
/// Bytes of a hash that are in a name: nobody makes two files that have them in common by mistake.
const HASH_BYTES: usize = 8;

fn main() -> Result<(), Box<dyn Error>> {
    let out = env::var("OUT_DIR")?;
    let mut table = format!("pub(super) const ASSETS: [Asset; {}] = [\n", FILES.len());
    println!("cargo::rerun-if-changed=build.rs");
    for (file, media_type) in FILES {
        let path = Path::new("assets").join(file);
        println!("cargo::rerun-if-changed={}", path.display());
        let bytes = fs::read(&path)?;
        let mut hash = String::new();
        for byte in Sha256::digest(&bytes).iter().take(HASH_BYTES) {
            write!(hash, "{byte:02x}")?;
        }
        let name = file.rsplit('/').next().unwrap_or(file);
        let packed = Path::new(&out).join(format!("{name}.gz"));
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(&bytes)?;
        fs::write(&packed, encoder.finish()?)?;
        writeln!(
            table,
            "    Asset {{ name: {name:?}, url: \"/console/assets/{hash}/{name}\", hash: {hash:?}, media_type: {media_type:?}, \
             gzip: include_bytes!(concat!(env!(\"OUT_DIR\"), \"/{name}.gz\")) }},"
        )?;
    }
    table.push_str("];\n");
    fs::write(Path::new(&out).join("assets.rs"), table)?;
    Ok(())
}
