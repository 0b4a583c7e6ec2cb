# SPDX-License-Identifier: Apache-2.0
"""Everything that needs PyTorch to define or train PORT. Imported only by export, train and backends/torch_.py."""
