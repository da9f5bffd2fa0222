#include "kernels/recurrence/recurrence.h"

namespace datong {

void recurrence_ref(const RecurrenceArgs& a) {
  for (int64_t c = 0; c < a.columns; ++c) {
    if (a.fresh)
      for (int64_t i = 0; i < a.keys; ++i) a.state[i * a.state_stride + c] = 0;
    for (int64_t t = 0; t < a.tokens; ++t) {
      const float *q = a.q + t * a.q_stride, *k = a.k + t * a.k_stride;
      const float decay = a.decay[t * a.decay_stride];
      float u = a.v[t * a.v_stride + c], seen = 0, y = 0;
      for (int64_t i = 0; i < a.keys; ++i) seen += k[i] * (decay * a.state[i * a.state_stride + c]);
      if (a.beta) u = a.beta[t * a.beta_stride] * (u - seen);
      for (int64_t i = 0; i < a.keys; ++i) {
        float& s = a.state[i * a.state_stride + c];
        s = decay * s + k[i] * u;
        y += q[i] * s;
      }
      a.y[t * a.y_stride + c] = y;
    }
  }
}

}  // namespace datong
