"use strict";
// Plotly measures text by reading a canvas back, of which browsers warn unless they were told.
(() => {
  const getContext = HTMLCanvasElement.prototype.getContext;
  HTMLCanvasElement.prototype.getContext = function (kind, options) {
    const wanted = kind === "2d" ? { willReadFrequently: true, ...options } : options;
    return getContext.call(this, kind, wanted);
  };
})();
