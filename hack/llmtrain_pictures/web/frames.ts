// Data frames as Grafana's panels draw them, with units, thresholds and colours.
import {
  DataFrame,
  Field,
  FieldColorModeId,
  FieldConfig,
  FieldType,
  GrafanaTheme2,
  ThresholdsMode,
  getDisplayProcessor,
} from '@grafana/data';
import { Range, Series, Variables, legendOf, seriesOf } from './prometheus';

export async function framesOf(panel: any, variables: Variables, range: Range, theme: GrafanaTheme2): Promise<DataFrame[]> {
  const frames: DataFrame[] = [];
  for (const target of panel.targets ?? []) {
    const filled = { ...target, legendFormat: target.legendFormat && variables.fill(target.legendFormat) };
    const series = await seriesOf(target, panel.title, variables, range);
    frames.push(...(panel.type === 'table' ? [table(panel, series)] : series.map((each) => curve(filled, each))));
  }
  let index = 0;
  for (const frame of frames) {
    for (const field of frame.fields) {
      configure(field, panel, theme, field.type === FieldType.number ? index++ : 0);
    }
  }
  return frames;
}

function curve(target: any, series: Series): DataFrame {
  const name = legendOf(target, series.metric);
  const times: Field = {
    name: 'Time',
    type: FieldType.time,
    config: {},
    values: series.values.map(([time]) => 1000 * time),
  };
  const values: Field = {
    name: 'Value',
    type: FieldType.number,
    labels: series.metric,
    config: { displayNameFromDS: name },
    values: series.values.map(([, value]) => numberOf(value)),
  };
  return { refId: target.refId, name, length: series.values.length, fields: [times, values] };
}

// NaN, the quotient of two zeros, is a gap in a curve.
function numberOf(text: string): number | null {
  const value = Number(text);
  return Number.isNaN(value) ? null : value;
}

// A row per series; the columns are those that the transformation of the panel leaves.
function table(panel: any, series: Series[]): DataFrame {
  const { excludeByName = {}, renameByName = {} } = panel.transformations?.[0]?.options ?? {};
  const names = [...new Set(series.flatMap((each) => Object.keys(each.metric)))].sort();
  const labels: Field[] = names.map((name) => ({
    name,
    type: FieldType.string,
    config: {},
    values: series.map((each) => each.metric[name] ?? ''),
  }));
  const values: Field = {
    name: 'Value',
    type: FieldType.number,
    config: {},
    values: series.map((each) => Number(each.values[0][1])),
  };
  const fields = [...labels, values].filter((field) => !excludeByName[field.name]);
  for (const field of fields) {
    field.name = renameByName[field.name] ?? field.name;
  }
  return { length: series.length, fields };
}

function configure(field: Field, panel: any, theme: GrafanaTheme2, index: number): void {
  const defaults = structuredClone(panel.fieldConfig?.defaults ?? {}) as FieldConfig;
  field.config.custom ??= defaults.custom;
  if (field.type === FieldType.number) {
    const steps = defaults.thresholds?.steps ?? [{ value: -Infinity, color: 'green' }];
    field.config = {
      ...defaults,
      ...field.config,
      color: { mode: panel.type === 'timeseries' ? FieldColorModeId.PaletteClassic : FieldColorModeId.Thresholds },
      thresholds: {
        mode: ThresholdsMode.Absolute,
        steps: steps.map((step) => ({ ...step, value: step.value ?? -Infinity })),
      },
    };
    const finite = field.values.filter(Number.isFinite);
    const [min, max] = [Math.min(...finite), Math.max(...finite)];
    field.state = { seriesIndex: index, range: { min, max, delta: max - min } };
  }
  field.display = getDisplayProcessor({ field, theme });
}
