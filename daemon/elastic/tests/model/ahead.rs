//! What is read ahead is really in the system's page cache afterwards.

use nestd_elastic::model::Model;
use nestd_elastic::sizes::Slice;
use nestd_elastic::synth::{self, Quant, Shape};

use crate::watched::Watched;

/// Three layers that the small size skips are 50 MB side by side, far more than a disk is asked for at
/// once.
const SHAPE: Shape = Shape { layers: 8, shared_kv: 3, width: 20480, ..Shape::SMALL };

#[test]
fn what_a_wider_size_needs_is_read_before_it_is_used() {
    // On the disk: a file system in memory has no pages to bring in, and that fails below.
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = folder.path().join("model.gguf");
    synth::write(&path, &SHAPE, Quant::Q8_0, 1, &mut |_, _| {}).unwrap();
    let model = Model::open(&path).unwrap();
    let file = Watched::open(&path);
    let narrow = |layer| (layer < 5).then_some(256);
    let (small, full) = (Slice::new((0..8).map(narrow).collect()), model.full());

    let all = 0..model.map().bytes().len();
    model.map().give_back(std::slice::from_ref(&all), &|| true);
    file.drop_pages();
    let (cached, all) = file.cached(std::slice::from_ref(&all));
    // The last page is no whole one.
    assert!(cached < all / 1000, "the file system under {} keeps pages", folder.path().display());

    let needed = [model.needed(&small), model.needed(&full)];
    let wait = |index: usize| file.wait(&needed[index]);
    model.map().read_ahead(&needed[0], &|| true);
    wait(0);
    let (cached, all) = file.cached(&needed[1]);
    assert!(cached < all / 2, "more was read than asked for: {cached} of {all}");

    model.map().read_ahead(&needed[1], &|| false);
    assert_eq!(file.cached(&needed[1]), (cached, all), "nothing is read once it shall stop");
    model.map().read_ahead(&needed[1], &|| true);
    wait(1);

    // And what a smaller size does not read leaves memory again, but for what is about to come.
    model.give_back(&[&small, &full], &|| true);
    wait(1);
    model.give_back(&[&small], &|| false);
    wait(1);
    model.give_back(&[&small], &|| true);
    let (cached, all) = file.cached(&needed[1]);
    assert!(cached < all / 2, "{cached} of {all} bytes stay");
    wait(0);
}
