# SPDX-License-Identifier: Apache-2.0
"""PORT, the pose relation transformer, deployed: repairs the joints that a keypoint detector lost to occlusion."""
