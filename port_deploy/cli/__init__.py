# SPDX-License-Identifier: Apache-2.0
"""The commands, one file each; every one has ``main(argv) -> exit code``. May use all below it, never the reverse."""
