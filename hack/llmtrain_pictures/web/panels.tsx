// One panel, drawn by the components of @grafana/ui.
import { DataFrame, Field, FieldType, GrafanaTheme2, TimeRange, VizOrientation, reduceField } from '@grafana/data';
import { BarGauge, BigValue, Table, TimeSeries } from '@grafana/ui';
import 'uplot/dist/uPlot.min.css';

interface PanelProps {
  panel: any;
  frames: DataFrame[];
  width: number;
  height: number;
  timeRange: TimeRange;
  theme: GrafanaTheme2;
}

const BAR_HEIGHT = 38;

export function PanelBody(props: PanelProps) {
  if (!props.frames.some((frame) => frame.length)) {
    return <div style={{ padding: 8 }}>No data</div>;
  }
  switch (props.panel.type) {
    case 'timeseries':
      return <Curves {...props} />;
    case 'stat':
      return <Values {...props} />;
    case 'bargauge':
      return <Bars {...props} />;
    case 'table':
      return <Table data={props.frames[0]} width={props.width} height={props.height} />;
    default:
      return <div style={{ padding: 8 }}>{props.panel.type} is not drawn</div>;
  }
}

function Curves({ panel, frames, width, height, timeRange }: PanelProps) {
  const legend = { calcs: [], displayMode: 'list', placement: 'bottom', showLegend: true, ...panel.options?.legend };
  return (
    <TimeSeries
      frames={frames}
      structureRev={1}
      timeRange={timeRange}
      timeZone="utc"
      width={width}
      height={height}
      legend={legend}
    />
  );
}

const numbers = (frame: DataFrame): Field => frame.fields.find((field) => field.type === FieldType.number)!;
const title = (field: Field): string => field.config.displayNameFromDS ?? '';

function lastValue(field: Field) {
  return field.display!(reduceField({ field, reducers: ['lastNotNull'] }).lastNotNull);
}

function Values({ panel, frames, width, height, theme }: PanelProps) {
  return (
    <div style={{ display: 'flex' }}>
      {frames.map((frame, index) => {
        const field = numbers(frame);
        return (
          <BigValue
            key={index}
            theme={theme}
            width={width / frames.length}
            height={height}
            value={{ ...lastValue(field), title: title(field) }}
            sparkline={{ x: frame.fields[0], y: field } as any}
            graphMode={panel.options?.graphMode ?? 'area'}
            colorMode={'value' as any}
            justifyMode={'auto' as any}
            textMode={panel.options?.textMode ?? 'value'}
          />
        );
      })}
    </div>
  );
}

function Bars({ panel, frames, width, height, theme }: PanelProps) {
  const fields = frames.map(numbers);
  const largest = Math.max(...fields.map((field) => field.values[field.values.length - 1]).filter(Number.isFinite));
  return (
    <div>
      {fields.map((field, index) => (
        <BarGauge
          key={index}
          theme={theme}
          width={width}
          height={Math.min(BAR_HEIGHT, height / fields.length)}
          orientation={VizOrientation.Horizontal}
          field={{ ...field.config, min: field.config.min ?? 0, max: field.config.max ?? largest } as any}
          value={{ ...lastValue(field), title: title(field) }}
          display={field.display}
          displayMode={panel.options?.displayMode ?? 'gradient'}
          text={{ titleSize: 12, valueSize: 14 }}
        />
      ))}
    </div>
  );
}
