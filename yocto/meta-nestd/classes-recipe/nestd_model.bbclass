# Packages a model in a GGUF file for nestd, and fails where it is not the file that the checksum says, where nestd could
# not run it, or where its smallest size does not fit the memory of NESTD_PROFILE.
#
#   NESTD_MODEL_FILE     the file, as it was unpacked
#   NESTD_MODEL_SHA256   its checksum; counts for file:// too, where BitBake checks none
#   NESTD_MODEL_SIZES    a table of MatFormer sizes, if the model needs one (docs/nestctl.md)
#   NESTD_MODEL_NAME     what the model is called on the device
#   NESTD_MODEL_NESTED   1: it decodes faster, its smaller sizes take less memory, and only nestd reads it (nestctl model nest)

inherit nestd_profile

DEPENDS += "nestctl-native"

NESTD_MODEL_SIZES ?= ""
NESTD_MODEL_NESTED ?= "0"
NESTD_MODEL_NAME ?= "${@d.getVar('BPN').removeprefix('nestd-model-')}"

B = "${WORKDIR}/build"
# What is installed.
NESTD_MODEL_FROM = "${B}${@'/nested' if d.getVar('NESTD_MODEL_NESTED') == '1' else ''}"

# What is in it is no program, and too large for more copies than needed.
INHIBIT_PACKAGE_STRIP = "1"
INHIBIT_PACKAGE_DEBUG_SPLIT = "1"
SSTATE_SKIP_CREATION = "1"
INHIBIT_DEFAULT_DEPS = "1"

def nestd_need_mib(d, size):
    """The memory in MiB that the daemon wants for a size of `nestctl model inspect`, its own included."""
    need = size["need_bytes"]
    # As the engine counts (daemon/src/engine/elastic/load.rs): one more request, since an interactive one may run
    # beside background ones, and one that waits for storage.
    requests = nestd_number(d, "NESTD_PARALLEL_REQUESTS") + 1 + (nestd_number(d, "NESTD_SPILL_MIB") > 0)
    model = need["total"] - need["kv"] + need["kv"] * requests
    # The process without the model.
    own_mib = 32
    return -(-model // 2**20) + nestd_number(d, "NESTD_PREFIX_CACHE_MIB") + own_mib

def nestd_model(*arguments):
    """What `nestctl model` prints."""
    import subprocess
    command = ["nestctl", "--json", "model", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        bb.fatal("nestctl model %s: %s" % (arguments[0], done.stderr))
    return done.stdout

def nestd_check_model(d, inspected):
    """Fails where no size fits. `inspected` is what `nestctl --json model inspect` says."""
    name = d.getVar("NESTD_MODEL_NAME")
    needs = {size["name"]: nestd_need_mib(d, size) for size in inspected["sizes"]}
    smallest = min(needs, key=needs.get)
    high = d.getVar("NESTD_MEMORY_HIGH_MIB")
    profile = d.getVar("NESTD_PROFILE")
    if not high:
        bb.warn("%s: its smallest size, %s, needs %s MiB; whether the machine has them is not known: "
                "set NESTD_MACHINE_MEMORY_MIB" % (name, smallest, needs[smallest]))
        return
    fitting = [size for size, need in needs.items() if need <= int(high)]
    if not fitting:
        bb.fatal("%s does not fit the profile %s: its smallest size, %s, needs %s MiB with %s tokens of context for "
                 "%s requests at once, and MemoryHigh is %s MiB. Take a smaller model or quantization, less of "
                 "NESTD_CONTEXT_TOKENS, NESTD_PARALLEL_REQUESTS or NESTD_PREFIX_CACHE_MIB, or NESTD_KV = \"q8_0\"."
                 % (name, profile, smallest, needs[smallest], d.getVar("NESTD_CONTEXT_TOKENS"),
                    d.getVar("NESTD_PARALLEL_REQUESTS"), high))
    bb.note("%s on %s: of %s MiB, %s" % (name, profile, high,
            ", ".join("%s needs %s" % (size, need) for size, need in needs.items())))

do_configure() {
    ln -sf ${NESTD_MODEL_FILE} ${B}/${NESTD_MODEL_NAME}.gguf
    if [ -n "${NESTD_MODEL_SIZES}" ]; then
        ln -sf ${NESTD_MODEL_SIZES} ${B}/${NESTD_MODEL_NAME}.sizes.csv
    fi
}
do_configure[cleandirs] = "${B}"

python do_compile() {
    import json

    file = os.path.join(d.getVar("B"), d.getVar("NESTD_MODEL_NAME") + ".gguf")
    found, wanted = bb.utils.sha256_file(file), d.getVar("NESTD_MODEL_SHA256")
    if found != wanted:
        bb.fatal("%s has the SHA-256 checksum %s, and NESTD_MODEL_SHA256 is \"%s\""
                 % (d.getVar("NESTD_MODEL_FILE"), found, wanted))
    if d.getVar("NESTD_MODEL_NESTED") == "1":
        nested = os.path.join(d.getVar("NESTD_MODEL_FROM"), os.path.basename(file))
        bb.utils.mkdirhier(os.path.dirname(nested))
        nestd_model("nest", "--force", file, "--out", nested)
        file = nested
    context = d.getVar("NESTD_CONTEXT_TOKENS")
    inspected = nestd_model("inspect", "--context", context, "--kv", d.getVar("NESTD_KV"), file)
    nestd_check_model(d, json.loads(inspected))
}

do_install() {
    install -d ${D}${datadir}/nestd/models
    for file in ${NESTD_MODEL_FROM}/${NESTD_MODEL_NAME}.*; do
        install -m 0644 $file ${D}${datadir}/nestd/models/
    done
}

PACKAGES = "${PN}"
FILES:${PN} += "${datadir}/nestd/models"
# The setting that has the daemon look there.
RDEPENDS:${PN} += "nestd-model-dir"
