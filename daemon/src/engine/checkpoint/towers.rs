//! The tensors of the vision and the audio tower, by name and shape. The vision tower is the same in
//! every Gemma 3n (MobileNetV5-300M); the audio tower follows the configuration. Called by
//! `tensors`.

use super::config::{Audio, Config};
use super::tensors::Wanted;

/// Its absence is how mistral.rs knows an early upload of the vision tower.
pub const OPTIONAL: &str = "model.vision_tower.timm_model.conv_stem.conv.bias";

const EDGE: u64 = 128;

/// Both towers and what leads from them into the language model.
#[must_use]
pub fn towers(config: &Config) -> Vec<Wanted> {
    let hidden = config.text.hidden_size;
    let mut list = List::default();
    list.part("the vision tower", "model.vision_tower.timm_model", vision);
    list.part("the audio tower", "model.audio_tower", |list| audio(list, &config.audio));
    let embedders = [
        (
            "the vision embedding",
            "model.embed_vision",
            config.vision.vocab_size,
            config.vision.hidden_size,
        ),
        (
            "the audio embedding",
            "model.embed_audio",
            config.audio.vocab_size,
            config.audio.hidden_size,
        ),
    ];
    for (group, prefix, rows, width) in embedders {
        list.part(group, prefix, |list| {
            list.add("embedding.weight", [rows, width]);
            list.add("hard_embedding_norm.weight", [width]);
            list.add("soft_embedding_norm.weight", [width]);
            list.add("embedding_projection.weight", [hidden, width]);
        });
    }
    list.wanted
}

#[derive(Default)]
struct List {
    wanted: Vec<Wanted>,
    prefix: String,
    group: Option<&'static str>,
}

impl List {
    fn part(&mut self, group: &'static str, prefix: &str, fill: impl FnOnce(&mut Self)) {
        self.group = Some(group);
        self.within(prefix, fill);
    }

    fn within(&mut self, name: &str, fill: impl FnOnce(&mut Self)) {
        let outer = self.prefix.len();
        self.prefix.push_str(name);
        self.prefix.push('.');
        fill(self);
        self.prefix.truncate(outer);
    }

    fn add(&mut self, name: &str, shape: impl Into<Vec<u64>>) {
        let name = format!("{}{name}", self.prefix);
        self.wanted.push(Wanted { name, shape: shape.into(), group: self.group });
    }

    /// A convolution with the norm behind it.
    fn conv(&mut self, name: &str, shape: [u64; 4]) {
        self.add(&format!("{name}.conv.weight"), shape);
        let [out, ..] = shape;
        self.add(&format!("{name}.bn.weight"), [out]);
    }
}

fn vision(list: &mut List) {
    list.conv("conv_stem", [64, 3, 3, 3]);
    list.add("conv_stem.conv.bias", [64]);
    for block in 0..3 {
        let input = if block == 0 { 64 } else { EDGE };
        list.within(&format!("blocks.0.{block}"), |list| {
            list.add("conv_exp.weight", [4 * input, input, 3, 3]);
            list.add("bn1.weight", [4 * input]);
            list.add("conv_pwl.weight", [EDGE, 4 * input, 1, 1]);
            list.add("bn2.weight", [EDGE]);
        });
    }
    // The first block of a stage widens: (stage, from, to, first kernel).
    for (stage, input, output, kernel) in [(1, EDGE, 256, 3), (2, 256, 640, 5), (3, 640, 1280, 5)] {
        let name = format!("blocks.{stage}.0");
        list.within(&name, |list| inverted(list, input, output, (kernel, 5), 6, true));
    }
    for (block, kernel) in [5, 3, 5, 3].into_iter().enumerate() {
        let name = format!("blocks.1.{}", block + 1);
        list.within(&name, |list| inverted(list, 256, 256, (kernel, 0), 4, true));
    }
    for block in 1..=7 {
        let name = format!("blocks.2.{block}");
        list.within(&name, |list| inverted(list, 640, 640, (5, 0), 4, true));
    }
    list.within("blocks.2.8", |list| inverted(list, 640, 640, (0, 0), 1, true));
    // Then pairs of attention and a plain block.
    let stages = [(2, 9, 14, 640, 12, 64, true), (3, 1, 19, 1280, 16, 96, false)];
    for (stage, first, pairs, width, heads, head_dim, strided) in stages {
        for pair in 0..pairs {
            let block = first + 2 * pair;
            list.within(&format!("blocks.{stage}.{block}"), |list| {
                attention(list, width, heads, head_dim, strided);
            });
            list.within(&format!("blocks.{stage}.{}", block + 1), |list| {
                inverted(list, width, width, (0, 0), 2, true);
            });
        }
    }
    list.within("msfa", |list| {
        list.within("ffn", |list| inverted(list, 640 + 1280, 2048, (0, 0), 2, false));
        list.add("norm.weight", [2048]);
    });
}

/// A universal inverted residual block; a kernel of 0 is a depthwise convolution that is not there.
fn inverted(
    list: &mut List,
    input: u64,
    output: u64,
    kernels: (u64, u64),
    ratio: u64,
    scale: bool,
) {
    let (start, middle) = kernels;
    let inner = input * ratio;
    if start > 0 {
        list.conv("dw_start", [input, 1, start, start]);
    }
    list.conv("pw_exp", [inner, input, 1, 1]);
    if middle > 0 {
        list.conv("dw_mid", [inner, 1, middle, middle]);
    }
    list.conv("pw_proj", [output, inner, 1, 1]);
    if scale {
        list.add("layer_scale.gamma", [output]);
    }
}

/// Multi-query attention over the picture, its keys and values at half the resolution if `strided`.
fn attention(list: &mut List, width: u64, heads: u64, head_dim: u64, strided: bool) {
    list.add("norm.weight", [width]);
    list.within("attn", |list| {
        list.add("query.proj.weight", [heads * head_dim, width, 1, 1]);
        for name in ["key", "value"] {
            if strided {
                list.add(&format!("{name}.down_conv.weight"), [width, 1, 3, 3]);
                list.add(&format!("{name}.norm.weight"), [width]);
            }
            list.add(&format!("{name}.proj.weight"), [head_dim, width, 1, 1]);
        }
        list.add("output.proj.weight", [width, heads * head_dim, 1, 1]);
    });
    list.add("layer_scale.gamma", [width]);
}

fn audio(list: &mut List, audio: &Audio) {
    let hidden = audio.hidden_size;
    let head_dim = hidden / audio.conf_num_attention_heads;
    let heads = head_dim * audio.conf_num_attention_heads;
    list.within("subsample_conv_projection", |list| {
        let (mut channels, mut bands) = (1, audio.input_feat_size);
        let convolutions = audio
            .sscp_conv_channel_size
            .into_iter()
            .zip(audio.sscp_conv_kernel_size)
            .zip(audio.sscp_conv_stride_size);
        for (index, ((output, [time, frequency]), [_, stride])) in convolutions.enumerate() {
            let kernel = time.min(frequency);
            list.add(&format!("conv_{index}.conv.weight"), [output, channels, kernel, kernel]);
            list.add(&format!("conv_{index}.norm.weight"), [output]);
            channels = output;
            // One band of padding on either side.
            bands = (bands + 2 + stride).saturating_sub(frequency) / stride.max(1);
        }
        list.add("input_proj_linear.weight", [hidden, channels * bands]);
    });
    for layer in 0..audio.conf_num_hidden_layers {
        list.within(&format!("conformer.{layer}"), |list| {
            for name in ["ffw_layer_start", "ffw_layer_end"] {
                list.within(name, |list| {
                    list.add("pre_layer_norm.weight", [hidden]);
                    list.add("ffw_layer_1.weight", [4 * hidden, hidden]);
                    list.add("ffw_layer_2.weight", [hidden, 4 * hidden]);
                    list.add("post_layer_norm.weight", [hidden]);
                });
            }
            list.within("attention", |list| {
                list.add("pre_attn_norm.weight", [hidden]);
                list.add("attn.relative_position_embedding.pos_proj.weight", [heads, hidden]);
                list.add("attn.per_dim_scale", [head_dim]);
                for name in ["q_proj", "k_proj", "v_proj"] {
                    list.add(&format!("attn.{name}.weight"), [heads, hidden]);
                }
                list.add("post.weight", [hidden, hidden]);
                list.add("post_norm.weight", [hidden]);
            });
            list.within("lconv1d", |list| {
                list.add("pre_layer_norm.weight", [hidden]);
                list.add("linear_start.weight", [2 * hidden, hidden]);
                list.add("depthwise_conv1d.weight", [hidden, 1, audio.conf_conv_kernel_size]);
                list.add("conv_norm.weight", [hidden]);
                list.add("linear_end.weight", [hidden, hidden]);
            });
            list.add("norm.weight", [hidden]);
        });
    }
}
