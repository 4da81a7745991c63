//! What sizes need and cost, on a synthetic file, and which sizes a file has.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::path::Path;

use nestd_elastic::config::Config;
use nestd_elastic::gguf::Header;
use nestd_elastic::kv::Store;
use nestd_elastic::ladder::sizes_of;
use nestd_elastic::need::{need, read_per_token};
use nestd_elastic::sizes::Slice;
use nestd_elastic::synth::{self, Quant, Shape};

/// Wide enough that half a row of down leaves pages out.
const WIDE: Shape = Shape { layers: 8, shared_kv: 3, width: 32768, ..Shape::SMALL };

fn with_model<T>(shape: &Shape, act: impl FnOnce(&Path, &Header<'_>, &Config) -> T) -> T {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    synth::write(&path, shape, Quant::Q4_0, 1, &mut |_, _| {}).unwrap();
    let file = std::fs::read(&path).unwrap();
    let header = Header::read(&file).unwrap();
    let config = Config::read(&header).unwrap();
    act(&path, &header, &config)
}

#[test]
fn parts_are_counted_in_pages() {
    with_model(&WIDE, |_, header, config| {
        let of = |widths: Vec<Option<usize>>, context| {
            let slice = Slice::new(widths);
            let need = need(header, config, &slice, context, Store::F16);
            (need, read_per_token(header, config, &slice))
        };
        let (full, full_read) = of(vec![Some(32768); 8], 128);
        let (half, half_read) = of(vec![Some(16384); 8], 128);
        let mut skipping = vec![Some(32768); 8];
        skipping[6] = None;
        let (skipped, skipped_read) = of(skipping, 128);

        // Gate and up are halved; a row of down has 18432 bytes, and the first half of it touches
        // three or four of its four and a half pages.
        let matrix = 256 * 32768 / 32 * 18;
        let saved = (full.layers - half.layers) as f64 / f64::from(8 * matrix);
        assert!((1.2..1.5).contains(&saved), "{saved}");
        // Read are bytes, not pages, and a twentieth of up.
        let saved = (full_read - half_read) as f64 / f64::from(8 * matrix);
        assert!((1.0..1.04).contains(&saved), "{saved}");
        let layer = (full.layers - skipped.layers) as f64 / f64::from(matrix);
        assert!((3.0..3.1).contains(&layer), "{layer}");
        assert!(full_read - skipped_read > u64::try_from(matrix).unwrap());
        assert_eq!((full.kv, full.embedding), (skipped.kv, skipped.embedding));
        assert!(half.work < full.work);

        let (short, _) = of(vec![Some(32768); 8], 64);
        assert!(short.kv < full.kv && short.ple < full.ple && short.layers == full.layers);
        // No more rows are read than there are.
        let table = header.tensor("per_layer_token_embd.weight").unwrap();
        let (long, _) = of(vec![Some(32768); 8], 1 << 20);
        assert_eq!(long.ple, table.len.next_multiple_of(4096) as u64);
        let parts = full.layers + full.embedding + full.ple + full.kv + full.work;
        assert_eq!(full.total(), parts);
    });
}

#[test]
fn a_rank_above_all_widths_is_counted() {
    let of = |laurel| {
        let shape = Shape { layers: 8, shared_kv: 3, heads: 1, ple: 64, laurel, ..Shape::SMALL };
        with_model(&shape, |_, header, config| {
            let slice = Slice::new(vec![Some(64); 8]);
            need(header, config, &slice, 128, Store::F16).work
        })
    };
    // The widest besides are the queries, 128; a step has 128 rows, of floats and their copies in 8 bits.
    assert_eq!(of(128), of(64));
    assert_eq!(of(256) - of(64), 128 * 128 * 11 / 2);
}

#[test]
fn a_table_beside_the_file_names_its_sizes() {
    with_model(&Shape { layers: 8, shared_kv: 3, ..Shape::SMALL }, |path, _, config| {
        let names = || {
            sizes_of(path, config)
                .map(|sizes| sizes.into_iter().map(|size| size.name).collect::<Vec<_>>())
                .map_err(|error| error.to_string())
        };
        assert_eq!(names().unwrap(), ["full"]);
        let head = "name,# Layers,# Effective Params (B),FFN Hidden Dims,Layers Skipped\n";
        let all = path.with_file_name("sizes.csv");
        let row = |name: &str| {
            format!("{head}{name},7,0.5,\"[512, 512, 512, 512, 512, 512, 256]\",[6]\n")
        };
        std::fs::write(&all, row("shared")).unwrap();
        assert_eq!(names().unwrap(), ["shared"]);
        let own = path.with_file_name("model.sizes.csv");
        std::fs::write(&own, row("own")).unwrap();
        assert_eq!(names().unwrap(), ["own"]);
        std::fs::write(&own, head).unwrap();
        let error = names().unwrap_err();
        assert!(error.contains("model.sizes.csv: it has no sizes"), "{error}");
        std::fs::write(&own, "x".repeat((1 << 20) + 1)).unwrap();
        assert!(names().unwrap_err().contains("longer than"));
    });
}

#[test]
fn published_dimensions_have_published_sizes() {
    with_model(&Shape { layers: 8, shared_kv: 3, ..Shape::SMALL }, |path, _, config| {
        let real = |layers: usize, width: usize| Config {
            hidden: 2048,
            widths: vec![width; layers],
            full: vec![false; layers],
            own_kv: 20,
            ..config.clone()
        };
        let sizes = sizes_of(path, &real(35, 16384)).unwrap();
        assert_eq!((sizes.len(), sizes[0].name.as_str()), (16, "E4B"));
        let sizes = sizes_of(path, &real(30, 8192)).unwrap();
        assert_eq!((sizes.len(), sizes[0].name.as_str()), (1, "E2B"));
    });
}
