SUMMARY = "Demo model of nestd"
DESCRIPTION = "4.7 million parameters with Gemma 3n's architecture: answers what a device assistant is asked. 5 MB."
SECTION = "base"

require recipes-nestd/nestd/nestd-source.inc

inherit nestd_model

LICENSE = "${NESTD_LICENSE}"
LIC_FILES_CHKSUM = "${NESTD_LICENSE_FILES}"

NESTD_MODEL_FILE = "${S}/models/demo/nestd-demo-Q8_0.gguf"
NESTD_MODEL_SHA256 = "983c4904ae7b09002d3d1517b02cf14e84a3a14719bda462c4088619fdf75502"
NESTD_MODEL_SIZES = "${S}/models/demo/hf/sizes.csv"
