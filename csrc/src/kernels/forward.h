// SPDX-License-Identifier: Apache-2.0
// One forward pass of the folded PORT (eqs. 4-11), pose after pose. Included once per instruction set.
//
// Per layer, with x = LN(z) (its affine is in the weights) and Y = [H_1 x, ..., H_J x, H_1 1, ..., H_J 1]:
//   Q^T = (Y_S + Y_rest G)^T, K = Y W_K            one head: the gauge that makes |S| rows of W_Q the identity
//   P^T = softmax over m of K Q^T                  1/sqrt(d) and log2(e) are in W_K: exp2
//   z  += sum_h P_h (Y W_VO,h) + b                 W_O is in W_VO (or kConcat, kShared: plan.h)
//   z  += relu(LN(z) W_1 + b_1) W_2 + b_2
// In the first layer x has the few channels of the embedding's factors. In the last one the second MLP product runs for
// the needed rows and for the mean over joints of the hidden activations, which is all that eq. (10) reads.
//
// Split   One thread per pose. Scores are kept transposed, [m][n], so that max, sum and exp2 of the softmax run down
//         the columns and nothing is reduced inside a vector.
// Memory  Workspace in plan.h, about 4 N (10 D + 2 y_ld + heads (2 D + N)) bytes, in L2; weights are streamed once.
// Numerics fp32 throughout. With bf16 weights both sides of every encoder product, K Q^T and P V included, are rounded
//         once to bf16 and sums stay fp32, as do the residual stream, LayerNorm, softmax, embedding and head.
//         LayerNorm takes the mean out before it squares. The first layer's attention is fp32 always: it is cheap.
// Sync    None: a call touches its arguments and its workspace only.
// Limits  N <= 32. Inputs finite and below 1e15, or that pose alone turns to NaN.
// Test: csrc/tests/test_network.cpp.

// `apply` from floats: makes the bf16 copy if the weights want it.
static void apply_float(const Plan& plan, const Matrix& matrix, int n, const float* a, int ld, const Workspace& w,
                        const Result& result) {
#if PORT_BF16
  if (matrix.bf16) to_bf16(n, a, ld, w.half, ld);
#endif
  apply(plan, matrix, n, a, ld, w.half, result);
}

// Mean over the n rows of a.
static void mean_row(const float* a, int n, int ld, float* to) {
  const Vec scale = splat(1.0f / static_cast<float>(n));
  for (int c = 0; c < ld; c += kVec) {
    Vec total = zero();
    for (int i = 0; i < n; ++i) total += load(a + i * ld + c);
    store(to + c, total * scale);
  }
}

PORT_INLINE void copy_row(const float* from, float* to, int ld) {
  for (int c = 0; c < ld; c += kVec) store(to + c, load(from + c));
}

// z = U W_e, the first LayerNorm and the first layer's x (rank channels when the first layer works on the factors).
static void embed(const Plan& plan, const LayerPlan& layer, const float* inputs, const uint8_t* mask,
                  const Workspace& w) {
  const int n = plan.joints, u_ld = (plan.rank + kLane - 1) / kLane * kLane;
  factors(plan, inputs, mask, w.u, u_ld);
  apply(plan, plan.embed, n, w.u, u_ld, nullptr, Result{w.z, plan.d_ld, nullptr, 0, false});
  float scales[kJointSlots];
  normalise(plan, w.z, plan.at<float>(layer.out_bias), w.x, scales);
  if (!plan.low_rank_first) return;
  for (int i = 0; i < n; ++i) {
    for (int c = 0; c < u_ld; c += kVec) store(w.x + i * u_ld + c, load(w.u + i * u_ld + c) * splat(scales[i]));
  }
}

// Eq. (9).
static void mlp(const Plan& plan, const LayerPlan& layer, const Workspace& w, bool last) {
  float scales[kJointSlots];
  normalise(plan, w.z, plan.at<float>(layer.fc2_bias), w.x, scales);
  apply_float(plan, layer.fc1, plan.joints, w.x, plan.d_ld, w,
              Result{w.h, plan.hidden_ld, plan.at<float>(layer.fc1_bias), 0, true});
  if (last) return;
  apply_float(plan, layer.fc2, plan.joints, w.h, plan.hidden_ld, w, Result{w.z, plan.d_ld, w.z, plan.d_ld, false});
}

// The last layer's second product for the needed rows and for the mean row, then eqs. (10)-(11).
static void head(const Plan& plan, const LayerPlan& layer, const float* inputs, const uint8_t* needed,
                 const Workspace& w, float* outputs, float* log_std) {
  const int n = plan.joints, ld = plan.d_ld, hidden = plan.hidden_ld;
  mean_row(w.h, n, hidden, w.h + n * hidden);
  int rows[kJointSlots];
  int count = 0;
  for (int i = 0; i < n; ++i) {
    if (!needed[i]) continue;
    copy_row(w.h + i * hidden, w.h + count * hidden, hidden);
    copy_row(w.z + i * ld, w.last + count * ld, ld);
    rows[count++] = i;
  }
  copy_row(w.h + n * hidden, w.h + count * hidden, hidden);
  mean_row(w.z, n, ld, w.last + count * ld);
  const Result residual{w.last, ld, w.last, ld, false};
  apply_float(plan, layer.fc2, count + 1, w.h, hidden, w, residual);

  float* squeezed = w.small;
  float* gate = w.small + plan.se_ld;
  apply(plan, plan.se1, 1, w.last + count * ld, ld, nullptr,
        Result{squeezed, plan.se_ld, plan.at<float>(plan.se1_bias), 0, true});
  apply(plan, plan.se2, 1, squeezed, plan.se_ld, nullptr, Result{gate, ld, plan.at<float>(plan.se2_bias), 0, false});
  const float* weight = plan.at<float>(plan.out_weight);
  float* gated = gate + ld;  // [outputs][ld]
  for (int c = 0; c < ld; c += kVec) {
    // sigmoid; se2 holds -log2(e) times its weights
    const Vec g = splat(1.0f) / (splat(1.0f) + exp2(min(load(gate + c), splat(126.0f))));
    store(gated + c, g * load(weight + c));
    store(gated + ld + c, g * load(weight + ld + c));
    if (log_std) store(gated + 2 * ld + c, g * load(weight + 2 * ld + c));
  }
  const float* bias = plan.at<float>(plan.out_bias);
  for (int i = 0; i < count; ++i) {
    for (int axis = 0; axis < 2; ++axis) {
      Vec total = zero();
      for (int c = 0; c < ld; c += kVec) total = fma(load(w.last + i * ld + c), load(gated + axis * ld + c), total);
      const float base = plan.residual ? inputs[rows[i] * plan.channels + axis] : 0.0f;
      outputs[rows[i] * 2 + axis] = base + (sum(total) + bias[axis]);
    }
  }
  for (int i = 0; log_std && i < count; ++i) {
    Vec total = zero();
    for (int c = 0; c < ld; c += kVec) total = fma(load(w.last + i * ld + c), load(gated + 2 * ld + c), total);
    log_std[rows[i]] = sum(total) + bias[2];
  }
}

static void forward(const Plan& plan, const float* inputs, const uint8_t* mask, const uint8_t* needed, int64_t batch,
                    float* outputs, float* log_std, void* workspace) {
  Workspace w;
  lay_out(plan, static_cast<unsigned char*>(workspace), &w);
  const int n = plan.joints;
  const LayerPlan* layer = plan.at<LayerPlan>(plan.layer);
  // Joints beyond N are lanes that nobody reads, but they should be numbers.
  for (int i = n * plan.max_y_ld; i < plan.joints_ld * plan.max_y_ld; ++i) w.y[i] = 0.0f;
  for (int i = 0; i < plan.joints_ld * plan.max_score_ld; ++i) w.t[i] = 0.0f;
  for (int64_t b = 0; b < batch; ++b) {
    embed(plan, layer[0], inputs, mask, w);
    for (int l = 0; l < plan.layers; ++l) {
      if (l > 0) {
        float scales[kJointSlots];
        normalise(plan, w.z, plan.at<float>(layer[l].out_bias), w.x, scales);
      }
      attention(plan, layer[l], w);
      mlp(plan, layer[l], w, l + 1 == plan.layers);
    }
    head(plan, layer[plan.layers - 1], inputs, needed, w, outputs, log_std);
    inputs += static_cast<int64_t>(n) * plan.channels;
    mask += n;
    needed += n;
    outputs += n * 2;
    if (log_std) log_std += n;
  }
}
