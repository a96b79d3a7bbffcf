// The package exports its component in another way than @grafana/ui imports it.
import * as scrollbars from './node_modules/react-custom-scrollbars-2/lib/index.js';

const exported = scrollbars as any;
export const Scrollbars = exported.Scrollbars ?? exported.default?.Scrollbars ?? exported.default;
export default Scrollbars;
