# SPDX-License-Identifier: Apache-2.0
"""The ways to compute the line, one file each. May use: weights, skeleton, config, errors, files."""
