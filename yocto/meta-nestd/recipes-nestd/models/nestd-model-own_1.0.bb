SUMMARY = "A model of one's own for nestd"
DESCRIPTION = "The GGUF file at NESTD_MODEL_URI, with its checksum. For a second one, copy this recipe."
SECTION = "base"

# Set these in the distribution's configuration or in a .bbappend. What the model's terms ask for, such as passing them
# on, is the integrator's to do: name them in NESTD_MODEL_LICENSE and NESTD_MODEL_LICENSE_FILES.
NESTD_MODEL_URI ?= ""
NESTD_MODEL_SHA256 ?= ""
# A file:// URI of a table of sizes, where the model needs one.
NESTD_MODEL_SIZES_URI ?= ""
NESTD_MODEL_LICENSE ?= "CLOSED"
NESTD_MODEL_LICENSE_FILES ?= ""

LICENSE = "${NESTD_MODEL_LICENSE}"
LIC_FILES_CHKSUM = "${NESTD_MODEL_LICENSE_FILES}"

SRC_URI = "${NESTD_MODEL_URI};name=model;unpack=0 ${NESTD_MODEL_SIZES_URI}"
SRC_URI[model.sha256sum] = "${NESTD_MODEL_SHA256}"

inherit nestd_model

S = "${UNPACKDIR}"

NESTD_MODEL_FILE = "${@nestd_unpacked(d, 'NESTD_MODEL_URI')}"
NESTD_MODEL_SIZES = "${@nestd_unpacked(d, 'NESTD_MODEL_SIZES_URI')}"

def nestd_unpacked(d, variable):
    """Where the file of a URI is after unpacking; nothing without one."""
    if not d.getVar(variable):
        return ""
    uri = d.getVar(variable)
    kind, host, path, user, password, parameters = bb.fetch.decodeurl(uri)
    # A file of this machine keeps its folders.
    name = path.lstrip("/") if kind == "file" else os.path.basename(bb.fetch.localpath(uri, d))
    return os.path.join(d.getVar("S"), name)

# nooelint: oelint.task.noanonpython
python () {
    if not d.getVar("NESTD_MODEL_URI") or not d.getVar("NESTD_MODEL_SHA256"):
        raise bb.parse.SkipRecipe("set NESTD_MODEL_URI and NESTD_MODEL_SHA256")
}
